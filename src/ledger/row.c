/*-------------------------------------------------------------------------
 * row.c
 *		A row of the ledger, and the columns that it is written to.
 *-------------------------------------------------------------------------
 */
#include "ledger/row.h"

#include "catalog/pg_type.h"
#include "lib/stringinfo.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"
#include "utils/rel.h"

#include "server/argument.h"

const char *const ledger_kinds[NUM_LEDGER_KINDS] = {
	[LEDGER_AUTHORIZE] = "authorize",
	[LEDGER_USAGE] = "usage",
	[LEDGER_ADJUSTMENT] = "adjustment",
};

LedgerKind
ledger_kind_named(const char *name)
{
	for (int kind = 0; kind < NUM_LEDGER_KINDS; kind++)
		if (strcmp(name, ledger_kinds[kind]) == 0)
			return kind;
	elog(ERROR, "unrecognized kind \"%s\" in the ledger", name);
	return 0;					/* keep compiler quiet */
}

#define DESCRIPTION(name, type, field, found)	{#name, type, field, offsetof(LedgerRow, name), found},

const LedgerColumn ledger_columns[NUM_LEDGER_COLUMNS] = {
	LEDGER_COLUMNS(DESCRIPTION)
};

/* What goes into a column. */
static Datum
field_value(FieldKind field, const void *member, bool *isnull)
{
	*isnull = false;
	switch (field)
	{
		case FIELD_UUID:
			return UUIDPGetDatum(member);
		case FIELD_TIME:
			return TimestampTzGetDatum(*(const TimestampTz *) member);
		case FIELD_KIND:
			return CStringGetTextDatum(ledger_kinds[*(const LedgerKind *) member]);
		case FIELD_TEXT:
			return text_or_null(*(const char *const *) member, isnull);
		case FIELD_UUID_POINTER:
		case FIELD_VARLENA:
			*isnull = *(void *const *) member == NULL;
			return PointerGetDatum(*(void *const *) member);
		case FIELD_NUMBER_OR_0:
			*isnull = *(const int64 *) member == 0;
			/* FALLTHROUGH */
		case FIELD_NUMBER:
			return Int64GetDatum(*(const int64 *) member);
		case FIELD_OPTIONAL:
			return number_or_null(*(const OptionalInt64 *) member, isnull);
	}
	return (Datum) 0;			/* keep compiler quiet */
}

/* What of a row goes into which column; NULLs where it has nothing. */
void
row_values(const LedgerRow *row, RowValues *values)
{
	for (int i = 0; i < NUM_LEDGER_COLUMNS; i++)
		values->values[i] = field_value(ledger_columns[i].field,
										(const char *) row + ledger_columns[i].offset,
										&values->isnull[i]);
}

/* The other way: sets a member, zero so far, to a copy of what a column holds. */
void
row_set(LedgerRow *row, int column, Datum value, bool isnull)
{
	void	   *member = (char *) row + ledger_columns[column].offset;

	if (isnull)
		return;
	switch (ledger_columns[column].field)
	{
		case FIELD_UUID:
			*(pg_uuid_t *) member = *DatumGetUUIDP(value);
			break;
		case FIELD_UUID_POINTER:
			*(pg_uuid_t **) member = palloc(sizeof(pg_uuid_t));
			**(pg_uuid_t **) member = *DatumGetUUIDP(value);
			break;
		case FIELD_TIME:
			*(TimestampTz *) member = DatumGetTimestampTz(value);
			break;
		case FIELD_KIND:
			*(LedgerKind *) member = ledger_kind_named(TextDatumGetCString(value));
			break;
		case FIELD_TEXT:
			*(const char **) member = TextDatumGetCString(value);
			break;
		case FIELD_VARLENA:
			*(void **) member = PG_DETOAST_DATUM_COPY(value);
			break;
		case FIELD_NUMBER:
		case FIELD_NUMBER_OR_0:
			*(int64 *) member = DatumGetInt64(value);
			break;
		case FIELD_OPTIONAL:
			((OptionalInt64 *) member)->given = true;
			((OptionalInt64 *) member)->value = DatumGetInt64(value);
			break;
	}
}

/* The names of all columns, or of those that a row has that is looked up. */
char *
row_column_list(bool found)
{
	StringInfoData list;

	initStringInfo(&list);
	for (int i = 0; i < NUM_LEDGER_COLUMNS; i++)
		if (!found || ledger_columns[i].found)
			appendStringInfo(&list, "%s%s", list.len > 0 ? ", " : "", ledger_columns[i].name);
	return list.data;
}

/* Where a relation has a column, if it is as kavach made it; or else 0. */
static AttrNumber
find_column(TupleDesc desc, const LedgerColumn *column)
{
	for (int i = 0; i < desc->natts; i++)
	{
		Form_pg_attribute attribute = TupleDescAttr(desc, i);

		if (!attribute->attisdropped && strcmp(NameStr(attribute->attname), column->name) == 0)
			return getBaseType(attribute->atttypid) == column->type ? attribute->attnum : InvalidAttrNumber;
	}
	return InvalidAttrNumber;
}

/*
 * Where a relation has the columns.  Returns the name of one that is not there
 * as kavach made it; or NULL.
 */
const char *
row_map_columns(Relation relation, AttrNumber *attnums)
{
	for (int i = 0; i < NUM_LEDGER_COLUMNS; i++)
	{
		attnums[i] = find_column(RelationGetDescr(relation), &ledger_columns[i]);
		if (attnums[i] == InvalidAttrNumber)
			return ledger_columns[i].name;
	}
	return NULL;
}
