/*-------------------------------------------------------------------------
 * rollup.h
 *		Folds closed batches into the rollups.
 *-------------------------------------------------------------------------
 */
#ifndef ROLLUP_H
#define ROLLUP_H

#include "kavach.h"

extern int64 rollup_fold(const int64 *batches, int count);
extern char *rollup_prune(const char *after, int count);

#endif							/* ROLLUP_H */
