/*-------------------------------------------------------------------------
 * months.h
 *		Has the partition of a month there when it is needed.
 *-------------------------------------------------------------------------
 */
#ifndef MONTHS_H
#define MONTHS_H

#include "kavach.h"

#include "ledger/partition.h"

extern PartitionRange months_ensure(Oid ledger, TimestampTz ts);
extern bool months_make_ahead(Oid ledger, bool *made);
extern void months_retire(Oid ledger);

#endif							/* MONTHS_H */
