/*-------------------------------------------------------------------------
 * months.h
 *		Has the partition of a month there when it is needed.
 *-------------------------------------------------------------------------
 */
#ifndef MONTHS_H
#define MONTHS_H

#include "kavach.h"

#include "ledger/partition.h"

extern TimestampTz months_arg(FunctionCallInfo fcinfo, int argno, const char *name);
extern PartitionRange months_ensure(Oid ledger, TimestampTz ts);
extern bool months_make_ahead(Oid ledger, bool *made);

#endif							/* MONTHS_H */
