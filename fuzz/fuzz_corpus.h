/* SPDX-License-Identifier: Apache-2.0 */
#ifndef ICMA_FUZZ_CORPUS_H
#define ICMA_FUZZ_CORPUS_H

#include <stddef.h>

/* Writes the seeds of fuzz_corpus_parts.c: folders are made, then files put in them. */
void put_parts(void (*put)(const char *folder, const char *name, const void *data, size_t size), void (*make_folder)(const char *name));
/* Those of fuzz_corpus_archives.c. */
void put_archives(void (*put)(const char *folder, const char *name, const void *data, size_t size), void (*make_folder)(const char *name));

#endif
