/* SPDX-License-Identifier: Apache-2.0 */
/* The verbs, each in the file of its name. */
#ifndef CLI_VERBS_H
#define CLI_VERBS_H

#include "options.h"

extern const cli_verb cli_verb_pack;
extern const cli_verb cli_verb_unpack;
extern const cli_verb cli_verb_generate;
extern const cli_verb cli_verb_add;
extern const cli_verb cli_verb_remove;
extern const cli_verb cli_verb_list;
extern const cli_verb cli_verb_info;
extern const cli_verb cli_verb_verify;
extern const cli_verb cli_verb_diff;
extern const cli_verb cli_verb_report;
extern const cli_verb cli_verb_embed;

#endif
