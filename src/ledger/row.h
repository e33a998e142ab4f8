/*-------------------------------------------------------------------------
 * row.h
 *		A row of the ledger, and the columns that it is written to.
 *-------------------------------------------------------------------------
 */
#ifndef ROW_H
#define ROW_H

#include "kavach.h"

#include "access/attnum.h"
#include "utils/relcache.h"

typedef enum LedgerKind
{
	LEDGER_AUTHORIZE,
	LEDGER_USAGE,
	LEDGER_ADJUSTMENT
} LedgerKind;

#define NUM_LEDGER_KINDS	(LEDGER_ADJUSTMENT + 1)

typedef struct LedgerRow
{
	pg_uuid_t	id;				/* made by ledger_append */
	TimestampTz ts;
	int64		batch;			/* made by ledger_append, too */
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

	bool		own;			/* found: written by this transaction */
} LedgerRow;

/* How a member of LedgerRow holds its column. */
typedef enum FieldKind
{
	FIELD_UUID,					/* pg_uuid_t, never NULL */
	FIELD_UUID_POINTER,			/* pg_uuid_t * */
	FIELD_TIME,					/* TimestampTz, never NULL */
	FIELD_KIND,					/* LedgerKind */
	FIELD_TEXT,					/* const char * */
	FIELD_VARLENA,				/* Jsonb *, inet * */
	FIELD_NUMBER,				/* int64, never NULL */
	FIELD_NUMBER_OR_0,			/* int64, 0 for NULL */
	FIELD_OPTIONAL				/* OptionalInt64 */
} FieldKind;

/*
 * The columns that a row is written to; the others are NULL.  Each is the member
 * of LedgerRow that has its name: its type, how the member holds it, and whether
 * a row that is looked up has it.
 */
#define LEDGER_COLUMNS(COLUMN) \
	COLUMN(id, UUIDOID, FIELD_UUID, true) \
	COLUMN(ts, TIMESTAMPTZOID, FIELD_TIME, true) \
	COLUMN(batch, INT8OID, FIELD_NUMBER, false) \
	COLUMN(kind, TEXTOID, FIELD_KIND, true) \
	COLUMN(agent_id, TEXTOID, FIELD_TEXT, true) \
	COLUMN(user_id, TEXTOID, FIELD_TEXT, true) \
	COLUMN(tenant_id, TEXTOID, FIELD_TEXT, true) \
	COLUMN(action, TEXTOID, FIELD_TEXT, true) \
	COLUMN(resource, TEXTOID, FIELD_TEXT, true) \
	COLUMN(arguments, JSONBOID, FIELD_VARLENA, true) \
	COLUMN(ip, INETOID, FIELD_VARLENA, false) \
	COLUMN(result, TEXTOID, FIELD_TEXT, true) \
	COLUMN(code, TEXTOID, FIELD_TEXT, true) \
	COLUMN(reason, TEXTOID, FIELD_TEXT, true) \
	COLUMN(permission_id, INT8OID, FIELD_NUMBER_OR_0, false) \
	COLUMN(policy_id, TEXTOID, FIELD_TEXT, true) \
	COLUMN(tokens_requested, INT8OID, FIELD_OPTIONAL, true) \
	COLUMN(min_tokens, INT8OID, FIELD_OPTIONAL, true) \
	COLUMN(tokens_released, INT8OID, FIELD_OPTIONAL, false) \
	COLUMN(tokens_cost, INT8OID, FIELD_OPTIONAL, true) \
	COLUMN(settles, UUIDOID, FIELD_UUID_POINTER, true) \
	COLUMN(request_id, TEXTOID, FIELD_TEXT, true) \
	COLUMN(metadata, JSONBOID, FIELD_VARLENA, false)

#define COLUMN_NUMBER(name, type, field, found)	COLUMN_##name,

/* COLUMN_id and so on: their numbers, from 0. */
typedef enum LedgerColumnNumber
{
	LEDGER_COLUMNS(COLUMN_NUMBER)
	NUM_LEDGER_COLUMNS
} LedgerColumnNumber;

typedef struct LedgerColumn
{
	const char *name;
	Oid			type;
	FieldKind	field;
	size_t		offset;			/* of the member of LedgerRow */
	bool		found;
} LedgerColumn;

/* The values of a row, one for each of ledger_columns. */
typedef struct RowValues
{
	Datum		values[NUM_LEDGER_COLUMNS];
	bool		isnull[NUM_LEDGER_COLUMNS];
} RowValues;

extern const char *const ledger_kinds[NUM_LEDGER_KINDS];
extern const LedgerColumn ledger_columns[NUM_LEDGER_COLUMNS];
extern LedgerKind ledger_kind_named(const char *name);
extern void row_values(const LedgerRow *row, RowValues *values);
extern void row_set(LedgerRow *row, int column, Datum value, bool isnull);
extern char *row_column_list(bool found);
extern const char *row_map_columns(Relation relation, AttrNumber *attnums);

#endif							/* ROW_H */
