/*-------------------------------------------------------------------------
 * scan.h
 *		The rows of the ledger that count, by an index of its months.
 *-------------------------------------------------------------------------
 */
#ifndef SCAN_H
#define SCAN_H

#include "kavach.h"

/* How rows are found. */
typedef enum ScanKind
{
	SCAN_BATCH,					/* of some batches */
	SCAN_AGENT					/* of an agent */
} ScanKind;

#define NUM_SCAN_KINDS	(SCAN_AGENT + 1)

typedef struct RowSearch
{
	ScanKind	kind;
	TimestampTz since;			/* ts of the rows, inclusive */
	int64		first;			/* their batches */
	int64		last;
	const char *agent_id;
} RowSearch;

/* A row that is found, as long as it is looked at. */
typedef struct CountedRow
{
	const text *ids[NUM_SCOPES];	/* whose it is, or NULL */
	int64		batch;
	TimestampTz ts;
	TimestampTz charged_at;
	int64		tokens;
	bool		is_call;
	int64		permission_id;	/* 0 for none */
} CountedRow;

typedef void (*CountedRowFunction) (const CountedRow *row, void *arg);

extern void scan_refuse_during_restore(Oid ledger);
extern void scan_rows(Oid ledger, const RowSearch *search, CountedRowFunction function, void *arg);

#endif							/* SCAN_H */
