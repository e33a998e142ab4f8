/*-------------------------------------------------------------------------
 * words.h
 *		How texts and numbers read in a reason.
 *-------------------------------------------------------------------------
 */
#ifndef WORDS_H
#define WORDS_H

#include "kavach.h"

#define MAX_REASON_BYTES	2048

extern const char *clip_text(const char *text, int max_bytes);
extern char *quote_text(const char *text);
extern const char *plural(int64 number, const char *one, const char *many);

#endif							/* WORDS_H */
