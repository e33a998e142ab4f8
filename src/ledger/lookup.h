/*-------------------------------------------------------------------------
 * lookup.h
 *		The way straight to a row, by a unique index of its month.
 *-------------------------------------------------------------------------
 */
#ifndef LOOKUP_H
#define LOOKUP_H

#include "kavach.h"

#include "ledger/row.h"

/* What a row is looked up by; what is unique in each partition. */
typedef enum LookupKey
{
	LOOKUP_ID,
	LOOKUP_SETTLES,
	LOOKUP_REQUEST				/* request_id, agent_id, kind */
} LookupKey;

#define MAX_LOOKUPS		2		/* kinds at a time */

extern bool lookup_row(Oid ledger, LookupKey key, const pg_uuid_t *id,
					   TimestampTz since, TimestampTz until, LedgerRow **row);
extern bool lookup_requests(Oid ledger, const char *agent_id, const char *request_id,
							const LedgerKind *kinds, int count, TimestampTz since, LedgerRow **rows);

#endif							/* LOOKUP_H */
