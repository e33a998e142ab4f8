/*-------------------------------------------------------------------------
 * partition.h
 *		The ledger's partitions: how they are found and made.
 *-------------------------------------------------------------------------
 */
#ifndef KAVACH_PARTITION_H
#define KAVACH_PARTITION_H

#include "kavach.h"

#include "nodes/pg_list.h"
#include "utils/relcache.h"

/* A partition, and the times that it takes. */
typedef struct PartitionRange
{
	Oid			relid;
	TimestampTz start;
	TimestampTz end;
} PartitionRange;

/* Partitions that may hold rows of some times. */
typedef struct PartitionReach
{
	List	   *relids;			/* newest times first */
	Oid			rest;			/* the default partition, or InvalidOid */
} PartitionReach;

extern bool partition_find(Oid ledger, TimestampTz ts, PartitionRange *range);
extern PartitionReach partition_reach_in(Relation ledger, TimestampTz since, TimestampTz until);
extern PartitionReach partition_reach(Oid ledger_id, TimestampTz since, TimestampTz until);
extern bool partition_exists(Oid ledger, TimestampTz ts);
extern TimestampTz partition_month(Oid relid);
extern bool partition_is_month(Oid relid);
extern bool partition_is_heap(Oid ledger, TimestampTz ts);
extern void partition_make(TimestampTz ts);
extern void partition_make_if_free(Oid ledger, TimestampTz ts);

#endif							/* KAVACH_PARTITION_H */
