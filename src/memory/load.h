/*-------------------------------------------------------------------------
 * load.h
 *		Reads usage that is not in memory from the ledger.
 *-------------------------------------------------------------------------
 */
#ifndef LOAD_H
#define LOAD_H

#include "kavach.h"

#include "memory/counter.h"

extern bool load_lacks(const WindowPlace places[NUM_PERIODS]);
extern void load_windows(const SubjectList *list, TimestampTz ts, const uint32 hashes[MAX_SUBJECTS],
						 WindowPlace places[MAX_SUBJECTS][NUM_PERIODS], bool own);

#endif							/* LOAD_H */
