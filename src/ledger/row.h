/*-------------------------------------------------------------------------
 * row.h
 *		A row of the ledger, and the columns that it is written to.
 *-------------------------------------------------------------------------
 */
#ifndef ROW_H
#define ROW_H

#include "kavach.h"

typedef enum LedgerKind
{
	LEDGER_AUTHORIZE,
	LEDGER_USAGE,
	LEDGER_ADJUSTMENT
} LedgerKind;

typedef struct LedgerRow
{
	pg_uuid_t	id;				/* made by ledger_append */
	TimestampTz ts;
	LedgerKind	kind;
	const char *agent_id;
	const char *user_id;
	const char *tenant_id;
	const char *action;
	const char *resource;
	Jsonb	   *arguments;
	inet	   *ip;
	const char *result;
	const char *code;
	const char *reason;
	int64		permission_id;	/* 0 for none */
	const char *policy_id;
	OptionalInt64 tokens_requested;
	OptionalInt64 min_tokens;
	OptionalInt64 tokens_released;
	OptionalInt64 tokens_cost;
	pg_uuid_t  *settles;
	const char *request_id;
	Jsonb	   *metadata;

	bool		own;			/* found by id: written by this transaction */
} LedgerRow;

typedef struct LedgerColumn
{
	const char *name;
	Oid			type;
} LedgerColumn;

#define NUM_LEDGER_COLUMNS	23	/* that are written; the others are NULL */

extern const LedgerColumn ledger_columns[NUM_LEDGER_COLUMNS];

/* The values of a row, one for each of ledger_columns. */
typedef struct RowValues
{
	int			count;
	Datum		values[NUM_LEDGER_COLUMNS];
	bool		isnull[NUM_LEDGER_COLUMNS];
} RowValues;

extern const char *const ledger_kinds[];
extern LedgerKind ledger_kind_named(const char *name);
extern void row_values(const LedgerRow *row, RowValues *values);

#endif							/* ROW_H */
