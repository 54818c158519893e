/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A user's command as the judge of adapters: --eval 'CMD {adapter} {task}'.
 *
 * The command is split into words as a shell would ('...', "...", backslashes; nothing else is special, and
 * no shell is run), and in each word {adapter} becomes the path of a PEFT folder (adapter_model.safetensors,
 * and adapter_config.json where there is one) and {task} the task's name. It gets no input; what it says on
 * stderr goes to ours. Its score, lower being better, is the last number on the last line of its output that
 * is not empty. A number is a word of its own or, on a line without one, what follows the last '=' or ':' of
 * a word ("2.07391 /tmp/x=7" and "bpc=2.07391" both say 2.07391).
 */
#ifndef CLI_EVALUATE_H
#define CLI_EVALUATE_H

#include "icma.h"

typedef struct cli_evaluator cli_evaluator;

/* ICMA_E_USAGE for a quote without its end, no {adapter}, or a program that is not there. */
icma_status cli_evaluate_open(const char *command, cli_evaluator **out, icma_error *error);
/* The same of a command that scores without an adapter: {adapter} is ICMA_E_USAGE. */
icma_status cli_evaluate_open_base(const char *command, cli_evaluator **out, icma_error *error);
/* Ends the command after so many seconds, with ICMA_E_IO; 0: never, as at first. */
void cli_evaluator_limit(cli_evaluator *evaluator, double seconds);
/* From now on the command's stderr is not ours: its last line goes into the error, should the command fail.
 */
void cli_evaluator_quote(cli_evaluator *evaluator);
/* Runs the command once. `file` is a whole safetensors file, NULL with a base's command; `config` is
 * adapter_config.json, or NULL. As a scorer, below. */
icma_status cli_evaluator_run(cli_evaluator *evaluator, const char *task, const uint8_t *file, size_t size,
                              const void *config, size_t config_size, double *score, icma_error *error);
/* Runs the command on each adapter, in a process group of its own. ICMA_E_IO where it cannot be run, fails or
 * is killed, or prints no finite number; ICMA_E_CANCELLED after a signal to us, which the command gets too.
 * The folder is private, lies in TMPDIR and is gone afterwards. The evaluator must outlive the scorer. */
icma_scorer cli_evaluator_scorer(cli_evaluator *evaluator);
void cli_evaluator_close(cli_evaluator *evaluator); /* NULL is fine */

#endif
