/*-------------------------------------------------------------------------
 * argument.c
 *		What callers hand in: checked once, before anything else happens, so
 *		that bad input is a clear error and changes nothing.
 *
 * Nor is anything read or written past what SQL has declared a function to
 * take and to answer: that may be of another version than this library, until
 * ALTER EXTENSION UPDATE has been run, or the server restarted.  Arguments and
 * columns are only ever added, so that their number tells which is the older.
 *-------------------------------------------------------------------------
 */
#include "server/argument.h"

#include "access/htup_details.h"
#include "funcapi.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/regproc.h"

ENTRY_POINT(kavach_check_id, 4, 0);
ENTRY_POINT(kavach_audit_limit, 3, 0);

void
refuse_null(const char *name)
{
	ereport(ERROR,
			(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
			 errmsg("%s must not be NULL", name)));
}

static void
check_text(const char *value, const char *name, int max_bytes)
{
	if (value[0] == '\0')
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("%s must not be empty", name)));
	if (strlen(value) > (size_t) max_bytes)
		ereport(ERROR,
				(errcode(ERRCODE_STRING_DATA_RIGHT_TRUNCATION),
				 errmsg("%s is too long", name),
				 errdetail("It has %zu bytes; at most %d are possible.", strlen(value), max_bytes)));
}

/* A user's id that looks like an agent's is an argument in the wrong place. */
static void
check_user_id(const char *value, const char *name)
{
	if (strcmp(name, "user_id") == 0 && strncmp(value, "agt_", 4) == 0)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("user_id must not begin with \"agt_\""),
				 errdetail("\"%s\" looks like the id of an agent.", value),
				 errhint("Check the order of the arguments, or pass them by name: user_id => ....")));
}

void
check_id(const char *value, const char *name)
{
	check_text(value, name, MAX_ID_BYTES);
	check_user_id(value, name);
}

char *
required_text_arg(FunctionCallInfo fcinfo, int argno, const char *name, int max_bytes)
{
	char	   *value;

	if (PG_ARGISNULL(argno))
		refuse_null(name);
	value = text_to_cstring(PG_GETARG_TEXT_PP(argno));
	check_text(value, name, max_bytes);
	return value;
}

char *
required_id_arg(FunctionCallInfo fcinfo, int argno, const char *name)
{
	return required_text_arg(fcinfo, argno, name, MAX_ID_BYTES);
}

char *
optional_id_arg(FunctionCallInfo fcinfo, int argno, const char *name)
{
	return PG_ARGISNULL(argno) ? NULL : required_id_arg(fcinfo, argno, name);
}

void
check_tokens(int64 tokens, const char *name)
{
	if (tokens > MAX_TOKENS || tokens < -MAX_TOKENS)
		ereport(ERROR,
				(errcode(ERRCODE_NUMERIC_VALUE_OUT_OF_RANGE),
				 errmsg("%s is out of range", name),
				 errdetail("At most %lld tokens are possible in one call.", (long long) MAX_TOKENS)));
}

/* A number of tokens, NULL or at least 0. */
OptionalInt64
count_arg(FunctionCallInfo fcinfo, int argno, const char *name)
{
	OptionalInt64 result = {0};

	if (PG_ARGISNULL(argno))
		return result;
	result.given = true;
	result.value = PG_GETARG_INT64(argno);
	if (result.value < 0)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("%s must not be negative", name),
				 errhint("A credit is made with kavach_adjust().")));
	check_tokens(result.value, name);
	return result;
}

int64
required_count_arg(FunctionCallInfo fcinfo, int argno, const char *name)
{
	if (PG_ARGISNULL(argno))
		refuse_null(name);
	return count_arg(fcinfo, argno, name).value;
}

bool
required_bool_arg(FunctionCallInfo fcinfo, int argno, const char *name)
{
	if (PG_ARGISNULL(argno))
		refuse_null(name);
	return PG_GETARG_BOOL(argno);
}

Jsonb *
object_arg(FunctionCallInfo fcinfo, int argno, const char *name)
{
	Jsonb	   *value;

	if (PG_ARGISNULL(argno))
		return NULL;
	value = PG_GETARG_JSONB_P(argno);
	if (!JB_ROOT_IS_OBJECT(value))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("%s must be a JSON object", name)));
	return value;
}

/* SQL: kavach.check_id(value, name, required, max_bytes) */
static Datum
kavach_check_id_checked(PG_FUNCTION_ARGS)
{
	char	   *name;

	if (PG_ARGISNULL(1) || PG_ARGISNULL(2) || PG_ARGISNULL(3))
		refuse_null("name, required or max_bytes");
	name = text_to_cstring(PG_GETARG_TEXT_PP(1));
	if (!PG_ARGISNULL(0))
	{
		char	   *value = text_to_cstring(PG_GETARG_TEXT_PP(0));

		check_text(value, name, PG_GETARG_INT32(3));
		check_user_id(value, name);
	}
	else if (PG_GETARG_BOOL(2))
		refuse_null(name);
	PG_RETURN_BOOL(true);
}

static void
check_result(const text *result)
{
	const char *name = VARDATA_ANY(result);
	size_t		length = VARSIZE_ANY_EXHDR(result);

	for (int i = 0; i < NUM_RESULTS; i++)
		if (length == strlen(result_names[i]) && memcmp(name, result_names[i], length) == 0)
			return;
	ereport(ERROR,
			(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
			 errmsg("unrecognized result \"%s\"", text_to_cstring(result)),
			 errdetail("Valid results are allowed, denied and rate_limited.")));
}

static void
check_actions(ArrayType *actions)
{
	if (ARR_NDIM(actions) == 0)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("actions must not be empty"),
				 errhint("Leave it out for rows of any action, or write ARRAY['execute'].")));
	if (array_contains_nulls(actions))
		ereport(ERROR,
				(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
				 errmsg("actions must not contain NULL")));
}

/*
 * SQL: kavach.audit_limit(max_rows, actions, result)
 *
 * A search's arguments are checked where its LIMIT is worked out: that is done
 * once, whatever rows there are to look at, and be there none.
 */
static Datum
kavach_audit_limit_checked(PG_FUNCTION_ARGS)
{
	if (!PG_ARGISNULL(1))
		check_actions(PG_GETARG_ARRAYTYPE_P(1));
	if (!PG_ARGISNULL(2))
		check_result(PG_GETARG_TEXT_PP(2));
	if (PG_ARGISNULL(0))
		PG_RETURN_NULL();
	PG_RETURN_INT64(PG_GETARG_INT32(0));
}

/* ---- how SQL declares a function ---- */

static void
refuse_declaration(FunctionCallInfo fcinfo, const char *what, int declared, int expected)
{
	ereport(ERROR,
			(errcode(ERRCODE_INVALID_FUNCTION_DEFINITION),
			 errmsg("kavach's SQL and its library are of different versions"),
			 errdetail("Function %s is declared with %d %s, and is one with %d.",
					   format_procedure(fcinfo->flinfo->fn_oid), declared, what, expected),
			 declared < expected ?
			 errhint("In this database, run ALTER EXTENSION kavach UPDATE.") :
			 errhint("Restart the server, once the library that belongs to the SQL is installed.")));
}

/*
 * The row type that a function answers with, or NULL for a value that is no
 * row.  Looking it up costs as much as deciding a call does, and it stays as it
 * is for the life of the function.
 */
static TupleDesc
declared_row(FunctionCallInfo fcinfo)
{
	static struct
	{
		Oid			function;
		TupleDesc	desc;
	}			known[16];
	static int	nknown = 0;
	TupleDesc	desc;
	MemoryContext old;

	for (int i = 0; i < nknown; i++)
		if (known[i].function == fcinfo->flinfo->fn_oid)
			return known[i].desc;

	if (get_call_result_type(fcinfo, NULL, &desc) != TYPEFUNC_COMPOSITE)
		return NULL;
	if (nknown == lengthof(known))
		return BlessTupleDesc(desc);
	old = MemoryContextSwitchTo(TopMemoryContext);
	known[nknown].desc = BlessTupleDesc(CreateTupleDescCopy(desc));
	known[nknown].function = fcinfo->flinfo->fn_oid;
	MemoryContextSwitchTo(old);
	return known[nknown++].desc;
}

/* The row type that a function which has been checked answers with. */
TupleDesc
answer_desc(FunctionCallInfo fcinfo)
{
	return declared_row(fcinfo);
}

static int
declared_columns(FunctionCallInfo fcinfo, bool is_row)
{
	TupleDesc	desc = NULL;

	if (is_row || type_is_rowtype(get_func_rettype(fcinfo->flinfo->fn_oid)))
		desc = declared_row(fcinfo);
	return desc ? desc->natts : 0;
}

/* What a call has kept, until it keeps something of its own. */
static const char checked = 0;

/* Fails unless SQL declares a function as it is; looks once in each query. */
void
check_declaration(FunctionCallInfo fcinfo, int nargs, int ncolumns)
{
	int			declared;

	if (fcinfo->flinfo->fn_extra != NULL)
		return;
	if (PG_NARGS() != nargs)
		refuse_declaration(fcinfo, "arguments", PG_NARGS(), nargs);
	declared = declared_columns(fcinfo, ncolumns > 0);
	if (declared != ncolumns)
		refuse_declaration(fcinfo, "columns", declared, ncolumns);
	fcinfo->flinfo->fn_extra = unconstify(char *, &checked);
}

/* What the function keeps from one call to the next at the same place of a plan: zero at first. */
void *
kept_for_calls(FunctionCallInfo fcinfo, Size size)
{
	FmgrInfo   *function = fcinfo->flinfo;

	if (function->fn_extra == &checked)
		function->fn_extra = MemoryContextAllocZero(function->fn_mcxt, size);
	return function->fn_extra;
}

/* ---- what is answered ---- */

Datum
text_or_null(const char *value, bool *isnull)
{
	*isnull = (value == NULL);
	return value ? CStringGetTextDatum(value) : (Datum) 0;
}

Datum
number_or_null(OptionalInt64 number, bool *isnull)
{
	*isnull = !number.given;
	return Int64GetDatum(number.value);
}

/* Whether two texts are the same, NULL being the same as NULL. */
bool
same_text(const char *a, const char *b)
{
	return (a == NULL || b == NULL) ? a == b : strcmp(a, b) == 0;
}
