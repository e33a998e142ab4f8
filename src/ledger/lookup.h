/*-------------------------------------------------------------------------
 * lookup.h
 *		The way straight to a row, by a unique index of its month.
 *-------------------------------------------------------------------------
 */
#ifndef LOOKUP_H
#define LOOKUP_H

#include "kavach.h"

#include "ledger/row.h"

/* What a row is looked up by; what is unique in each partition.  Described in keys[]. */
typedef enum LookupKey
{
	LOOKUP_ID,					/* id */
	LOOKUP_SETTLES,				/* settles */
	LOOKUP_REQUEST				/* agent_id, kind, request_id */
} LookupKey;

#define NUM_LOOKUP_KEYS	(LOOKUP_REQUEST + 1)
#define MAX_LOOKUPS		2		/* at a time */

extern bool lookup_rows(Oid ledger, LookupKey key, const Datum *const *values, int count,
						TimestampTz since, TimestampTz until, LedgerRow **rows);
extern bool lookup_row(Oid ledger, LookupKey key, const Datum *values,
					   TimestampTz since, TimestampTz until, LedgerRow **row);

#endif							/* LOOKUP_H */
