/*-------------------------------------------------------------------------
 * argument.c
 *		What callers hand in: checked once, before anything else happens, so
 *		that bad input is a clear error and changes nothing.
 *-------------------------------------------------------------------------
 */
#include "kavach.h"

#include "access/htup_details.h"
#include "funcapi.h"
#include "utils/builtins.h"
#include "utils/memutils.h"

PG_FUNCTION_INFO_V1(kavach_check_id);

static void
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
Datum
kavach_check_id(PG_FUNCTION_ARGS)
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

/*
 * The row type that a function answers with.  Looking it up costs as much as
 * deciding a call does, and it stays as it is for the life of the function.
 */
TupleDesc
answer_desc(FunctionCallInfo fcinfo)
{
	static struct
	{
		Oid			function;
		TupleDesc	desc;
	}			known[8];
	static int	nknown = 0;
	TupleDesc	desc;
	MemoryContext old;

	for (int i = 0; i < nknown; i++)
		if (known[i].function == fcinfo->flinfo->fn_oid)
			return known[i].desc;

	if (get_call_result_type(fcinfo, NULL, &desc) != TYPEFUNC_COMPOSITE)
		elog(ERROR, "return type must be a row type");
	if (nknown == lengthof(known))
		return BlessTupleDesc(desc);
	old = MemoryContextSwitchTo(TopMemoryContext);
	known[nknown].desc = BlessTupleDesc(CreateTupleDescCopy(desc));
	known[nknown].function = fcinfo->flinfo->fn_oid;
	MemoryContextSwitchTo(old);
	return known[nknown++].desc;
}

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
