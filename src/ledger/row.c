/*-------------------------------------------------------------------------
 * row.c
 *		A row of the ledger, and the columns that it is written to.
 *-------------------------------------------------------------------------
 */
#include "ledger/row.h"

#include "catalog/pg_type.h"

#include "server/argument.h"

const char *const ledger_kinds[] = {
	[LEDGER_AUTHORIZE] = "authorize",
	[LEDGER_USAGE] = "usage",
	[LEDGER_ADJUSTMENT] = "adjustment",
};

LedgerKind
ledger_kind_named(const char *name)
{
	for (int kind = 0; kind < (int) lengthof(ledger_kinds); kind++)
		if (strcmp(name, ledger_kinds[kind]) == 0)
			return kind;
	elog(ERROR, "unrecognized kind \"%s\" in the ledger", name);
	return 0;					/* keep compiler quiet */
}

/* The columns that a row is written to, in the order of row_values. */
const LedgerColumn ledger_columns[NUM_LEDGER_COLUMNS] = {
	{"id", UUIDOID},
	{"ts", TIMESTAMPTZOID},
	{"batch", INT8OID},
	{"kind", TEXTOID},
	{"agent_id", TEXTOID},
	{"user_id", TEXTOID},
	{"tenant_id", TEXTOID},
	{"action", TEXTOID},
	{"resource", TEXTOID},
	{"arguments", JSONBOID},
	{"ip", INETOID},
	{"result", TEXTOID},
	{"code", TEXTOID},
	{"reason", TEXTOID},
	{"permission_id", INT8OID},
	{"policy_id", TEXTOID},
	{"tokens_requested", INT8OID},
	{"min_tokens", INT8OID},
	{"tokens_released", INT8OID},
	{"tokens_cost", INT8OID},
	{"settles", UUIDOID},
	{"request_id", TEXTOID},
	{"metadata", JSONBOID},
};

static void
add_value(RowValues *row, Datum value, bool isnull)
{
	row->values[row->count] = value;
	row->isnull[row->count] = isnull;
	row->count++;
}

static void
add_text(RowValues *row, const char *value)
{
	bool		isnull;
	Datum		datum = text_or_null(value, &isnull);

	add_value(row, datum, isnull);
}

static void
add_pointer(RowValues *row, const void *value)
{
	add_value(row, PointerGetDatum(value), value == NULL);
}

static void
add_number(RowValues *row, OptionalInt64 value)
{
	add_value(row, Int64GetDatum(value.value), !value.given);
}

/* What of a row goes into which column; NULLs where it has nothing. */
void
row_values(const LedgerRow *row, RowValues *values)
{
	values->count = 0;
	add_pointer(values, &row->id);
	add_value(values, TimestampTzGetDatum(row->ts), false);
	add_value(values, Int64GetDatum(0), false);
	add_text(values, ledger_kinds[row->kind]);
	add_text(values, row->agent_id);
	add_text(values, row->user_id);
	add_text(values, row->tenant_id);
	add_text(values, row->action);
	add_text(values, row->resource);
	add_pointer(values, row->arguments);
	add_pointer(values, row->ip);
	add_text(values, row->result);
	add_text(values, row->code);
	add_text(values, row->reason);
	add_value(values, Int64GetDatum(row->permission_id), row->permission_id == 0);
	add_text(values, row->policy_id);
	add_number(values, row->tokens_requested);
	add_number(values, row->min_tokens);
	add_number(values, row->tokens_released);
	add_number(values, row->tokens_cost);
	add_pointer(values, row->settles);
	add_text(values, row->request_id);
	add_pointer(values, row->metadata);
	Assert(values->count == NUM_LEDGER_COLUMNS);
}
