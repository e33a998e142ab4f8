/*-------------------------------------------------------------------------
 * dropped.h
 *		Months whose rows the ledger has no more.
 *-------------------------------------------------------------------------
 */
#ifndef DROPPED_H
#define DROPPED_H

#include "kavach.h"

extern bool dropped_is(TimestampTz ts);
extern void dropped_refuse(TimestampTz ts, const char *hint);

#endif							/* DROPPED_H */
