/*-------------------------------------------------------------------------
 * permission.c
 *		Resource patterns, actions, and the constraints of a permission.
 *
 * What is stored was checked by kavach_check_permission when it was granted;
 * a constraint that cannot be read all the same is an error, so that nothing
 * is admitted by mistake.
 *
 * To add a constraint: a row in constraint_kinds, with how its value is
 * checked and how it is applied.
 *-------------------------------------------------------------------------
 */
#include "decide/permission.h"

#include "decide/words.h"
#include "memory/catalog.h"
#include "server/argument.h"
#include "server/clock.h"

#include <sys/socket.h>

#include "catalog/pg_collation.h"
#include "catalog/pg_type.h"
#include "lib/stringinfo.h"
#include "miscadmin.h"
#include "nodes/pg_list.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/date.h"
#include "utils/numeric.h"

ENTRY_POINT(kavach_check_permission, 3, 0);

typedef struct ConstraintKind
{
	const char *name;
	void		(*check) (const char *name, JsonbValue *value);
	/* why it does not hold, or NULL where it does */
	char	   *(*refusal) (JsonbValue *value, const PermissionRequest *request);
	/* when it holds again of itself; NULL where it never does */
	TimestampTz (*opens_at) (JsonbValue *value, const PermissionRequest *request);
	const char *code;			/* when it does not hold */
} ConstraintKind;

static void check_rate(const char *name, JsonbValue *value);
static void check_globs(const char *name, JsonbValue *value);
static void check_time_window(const char *name, JsonbValue *value);
static void check_networks(const char *name, JsonbValue *value);
static char *arguments_refusal(JsonbValue *globs, const PermissionRequest *request);
static char *time_refusal(JsonbValue *window, const PermissionRequest *request);
static TimestampTz time_opens_at(JsonbValue *window, const PermissionRequest *request);
static char *ip_refusal(JsonbValue *networks, const PermissionRequest *request);

/* In the order in which they are applied; a rate is for budget time. */
static const ConstraintKind constraint_kinds[] = {
	{"allowed_arg_patterns", check_globs, arguments_refusal, NULL, "argument_not_allowed"},
	{"time_window", check_time_window, time_refusal, time_opens_at, "outside_time_window"},
	{"ip_allowlist", check_networks, ip_refusal, NULL, "ip_not_allowed"},
	{"max_calls_per_hour", check_rate, NULL, NULL, NULL},
};

/* ---- JSON helpers ---- */

static bool
string_is(const JsonbValue *value, const char *text)
{
	return value->val.string.len == (int) strlen(text) &&
		memcmp(value->val.string.val, text, value->val.string.len) == 0;
}

static char *
string_of(const JsonbValue *value)
{
	return pnstrdup(value->val.string.val, value->val.string.len);
}

static JsonbValue *
member_of(JsonbContainer *object, const char *name)
{
	JsonbValue	key;

	key.type = jbvString;
	key.val.string.val = unconstify(char *, name);
	key.val.string.len = strlen(name);
	return findJsonbValueFromContainer(object, JB_FOBJECT, &key);
}

static void
refuse_value(const char *name, const char *expected)
{
	ereport(ERROR,
			(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
			 errmsg("invalid value of constraint \"%s\"", name),
			 errdetail("It must be %s.", expected)));
}

/* The strings of a list, one call each: stops at the first NULL. */
typedef struct StringList
{
	JsonbIterator *iterator;
} StringList;

static StringList
strings_of(JsonbValue *list, const char *name, const char *expected)
{
	StringList	strings = {0};
	JsonbValue	element;

	if (list->type != jbvBinary ||
		!JsonContainerIsArray(list->val.binary.data) ||
		JsonContainerIsScalar(list->val.binary.data) ||
		JsonContainerSize(list->val.binary.data) == 0)
		refuse_value(name, expected);
	strings.iterator = JsonbIteratorInit(list->val.binary.data);
	JsonbIteratorNext(&strings.iterator, &element, true);	/* the array's begin */
	return strings;
}

static char *
next_string(StringList *strings, const char *name, const char *expected)
{
	JsonbValue	element;

	if (JsonbIteratorNext(&strings->iterator, &element, true) != WJB_ELEM)
		return NULL;
	if (element.type != jbvString)
		refuse_value(name, expected);
	return string_of(&element);
}

#define MAX_LISTED	8

/* The strings of a list as a reason shows them, the first few. */
static char *
listed(JsonbValue *list, const char *name)
{
	StringList	strings = strings_of(list, name, "a list");
	StringInfoData listed;
	char	   *string;
	int			count = 0;

	initStringInfo(&listed);
	while ((string = next_string(&strings, name, "a list of strings")) != NULL)
		if (count++ < MAX_LISTED)
			appendStringInfo(&listed, "%s%s", count > 1 ? ", " : "", quote_text(string));
	if (count > MAX_LISTED)
		appendStringInfo(&listed, " and %d more", count - MAX_LISTED);
	return listed.data;
}

/* ---- max_calls_per_hour ---- */

static int64
rate_of(const char *name, JsonbValue *value)
{
	Numeric		number;
	int64		rate = 0;

	if (value->type == jbvNumeric)
	{
		number = value->val.numeric;
		if (DatumGetBool(DirectFunctionCall2(numeric_ge, NumericGetDatum(number),
											 NumericGetDatum(int64_to_numeric(1)))) &&
			DatumGetBool(DirectFunctionCall2(numeric_le, NumericGetDatum(number),
											 NumericGetDatum(int64_to_numeric(PG_INT32_MAX)))) &&
			DatumGetBool(DirectFunctionCall2(numeric_eq, NumericGetDatum(number),
											 DirectFunctionCall2(numeric_trunc, NumericGetDatum(number),
																 Int32GetDatum(0)))))
			rate = DatumGetInt64(DirectFunctionCall1(numeric_int8, NumericGetDatum(number)));
	}
	if (rate == 0)
		refuse_value(name, "a whole number from 1 to 2147483647");
	return rate;
}

static void
check_rate(const char *name, JsonbValue *value)
{
	(void) rate_of(name, value);
}

/* ---- allowed_arg_patterns ---- */

#define MAX_PATH_BYTES	200

#define GLOBS_EXPECTED "a list of patterns, with * for any text and ? for any character"

static void
check_globs(const char *name, JsonbValue *value)
{
	StringList	globs = strings_of(value, name, GLOBS_EXPECTED);
	char	   *glob;

	while ((glob = next_string(&globs, name, GLOBS_EXPECTED)) != NULL)
	{
		int			backslashes = 0;

		while (backslashes < (int) strlen(glob) && glob[strlen(glob) - 1 - backslashes] == '\\')
			backslashes++;
		if (backslashes % 2 != 0)
			refuse_value(name, "a list of patterns in which every backslash is followed by what it quotes");
	}
}

/* A glob as a LIKE pattern: the server matches it in the database's encoding. */
static text *
like_pattern(const char *glob)
{
	StringInfoData pattern;

	initStringInfo(&pattern);
	for (const char *c = glob; *c; c++)
	{
		if (*c == '*')
			appendStringInfoChar(&pattern, '%');
		else if (*c == '?')
			appendStringInfoChar(&pattern, '_');
		else if (*c == '\\' && c[1] != '\0')
		{
			appendStringInfoChar(&pattern, '\\');
			appendStringInfoChar(&pattern, *++c);
		}
		else
		{
			if (*c == '%' || *c == '_')
				appendStringInfoChar(&pattern, '\\');
			appendStringInfoChar(&pattern, *c);
		}
	}
	return cstring_to_text_with_len(pattern.data, pattern.len);
}

/* The globs as LIKE patterns, a list of text: once for all that they are matched with. */
static List *
like_patterns(JsonbValue *globs)
{
	StringList	list = strings_of(globs, "allowed_arg_patterns", GLOBS_EXPECTED);
	List	   *patterns = NIL;
	char	   *glob;

	while ((glob = next_string(&list, "allowed_arg_patterns", GLOBS_EXPECTED)) != NULL)
		patterns = lappend(patterns, like_pattern(glob));
	return patterns;
}

static bool
matches_some_pattern(const JsonbValue *string, List *patterns)
{
	text	   *value = cstring_to_text_with_len(string->val.string.val, string->val.string.len);
	bool		matches = false;
	ListCell   *cell;

	foreach(cell, patterns)
	{
		CHECK_FOR_INTERRUPTS();
		matches = DatumGetBool(DirectFunctionCall2Coll(textlike, C_COLLATION_OID,
													   PointerGetDatum(value),
													   PointerGetDatum(lfirst(cell))));
		if (matches)
			break;
	}
	pfree(value);
	return matches;
}

/* Where in the arguments a walk is: a step for each container that it is in. */
typedef struct Step
{
	struct Step *outer;
	JsonbValue	key;			/* in an object */
	int			index;			/* in an array, or -1 */
	bool		is_array;
} Step;

static Step *
step_in(Step *outer, bool is_array)
{
	Step	   *step = palloc(sizeof(Step));

	if (outer != NULL && outer->is_array)
		outer->index++;
	step->outer = outer;
	step->is_array = is_array;
	step->index = -1;
	return step;
}

static Step *
step_out(Step *step)
{
	Step	   *outer = step->outer;

	pfree(step);
	return outer;
}

#define LETTERS "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ_"

/* As a jsonpath has it: .to, ."reply-to", [3] */
static void
append_step(StringInfo path, const Step *step)
{
	char	   *key;

	if (step->is_array)
	{
		appendStringInfo(path, "[%d]", step->index);
		return;
	}
	key = string_of(&step->key);
	if (key[0] != '\0' && strchr(LETTERS, key[0]) != NULL && strspn(key, LETTERS "0123456789") == strlen(key))
		appendStringInfo(path, ".%s", clip_text(key, MAX_PATH_BYTES));
	else
		appendStringInfo(path, ".%s", quote_text(key));
}

/* "the argument $.mail.to[1] is "eve@evil.example"" */
static char *
argument_in_words(const Step *innermost, const JsonbValue *value)
{
	StringInfoData path;
	List	   *steps = NIL;
	ListCell   *cell;

	for (const Step *step = innermost; step != NULL; step = step->outer)
		steps = lcons(unconstify(Step *, step), steps);
	initStringInfo(&path);
	appendStringInfoChar(&path, '$');
	foreach(cell, steps)
		append_step(&path, lfirst(cell));
	return psprintf("the argument %s is %s", clip_text(path.data, MAX_PATH_BYTES), quote_text(string_of(value)));
}

/* The first string, however deep, that matches no pattern, in words; NULL where all match. */
static char *
find_stranger(Jsonb *arguments, List *patterns)
{
	JsonbIterator *iterator = JsonbIteratorInit(&arguments->root);
	JsonbValue	value;
	Step	   *step = step_in(NULL, false);

	JsonbIteratorNext(&iterator, &value, false);	/* the object's begin */
	while (step != NULL)
	{
		JsonbIteratorToken token = JsonbIteratorNext(&iterator, &value, false);

		if (token == WJB_KEY)
			step->key = value;
		else if (token == WJB_ELEM)
			step->index++;
		if ((token == WJB_VALUE || token == WJB_ELEM) && value.type == jbvString &&
			!matches_some_pattern(&value, patterns))
			return argument_in_words(step, &value);

		if (token == WJB_BEGIN_OBJECT || token == WJB_BEGIN_ARRAY)
			step = step_in(step, token == WJB_BEGIN_ARRAY);
		else if (token == WJB_END_OBJECT || token == WJB_END_ARRAY)
			step = step_out(step);
	}
	return NULL;
}

/* Every string in the arguments has to match a pattern. */
static char *
arguments_refusal(JsonbValue *globs, const PermissionRequest *request)
{
	char	   *stranger;

	if (request->arguments == NULL || JB_ROOT_COUNT(request->arguments) == 0)
		return psprintf("the call has no arguments, and allowed_arg_patterns (%s) asks for some",
						listed(globs, "allowed_arg_patterns"));
	stranger = find_stranger(request->arguments, like_patterns(globs));
	if (stranger == NULL)
		return NULL;
	return psprintf("%s and matches none of allowed_arg_patterns (%s)",
					stranger, listed(globs, "allowed_arg_patterns"));
}

/* ---- time_window ---- */

#define WINDOW_EXPECTED "{\"start\": \"HH:MM\", \"end\": \"HH:MM\"} in UTC, two different times"

/* "HH:MM" or "HH:MM:SS" as microseconds of the day; -1 if it is neither. */
static TimeADT
time_of_day(JsonbValue *value)
{
	static const char *const shape = "dd:dd:dd";
	char	   *string;
	int			length;

	if (value == NULL || value->type != jbvString)
		return -1;
	string = string_of(value);
	length = strlen(string);
	if (length != 5 && length != 8)
		return -1;
	for (int i = 0; i < length; i++)
		if (shape[i] == 'd' ? (string[i] < '0' || string[i] > '9') : string[i] != shape[i])
			return -1;
	return DatumGetTimeADT(DirectFunctionCall3(time_in, CStringGetDatum(string),
											   ObjectIdGetDatum(InvalidOid), Int32GetDatum(-1)));
}

static void
read_time_window(JsonbValue *window, TimeADT *start, TimeADT *end)
{
	if (window->type != jbvBinary || !JsonContainerIsObject(window->val.binary.data) ||
		JsonContainerSize(window->val.binary.data) != 2 ||
		(*start = time_of_day(member_of(window->val.binary.data, "start"))) < 0 ||
		(*end = time_of_day(member_of(window->val.binary.data, "end"))) < 0 ||
		*start == *end || *start == USECS_PER_DAY)
		refuse_value("time_window", WINDOW_EXPECTED);
}

static void
check_time_window(const char *name, JsonbValue *value)
{
	TimeADT		start,
				end;

	read_time_window(value, &start, &end);
}

/* From start on and before end; a window that ends before it starts crosses midnight. */
static bool
time_within(JsonbValue *window, TimestampTz ts)
{
	TimeADT		start,
				end;
	TimeADT		now = ts - period_start(PERIOD_DAY, ts);

	read_time_window(window, &start, &end);
	return start < end ? (now >= start && now < end) : (now >= start || now < end);
}

/* The next start, today or tomorrow; days of UTC are all of the same length. */
static TimestampTz
time_opens_at(JsonbValue *window, const PermissionRequest *request)
{
	TimeADT		start,
				end;
	TimestampTz opening;

	read_time_window(window, &start, &end);
	opening = period_start(PERIOD_DAY, request->ts) + start;
	return opening > request->ts ? opening : opening + USECS_PER_DAY;
}

static char *
time_refusal(JsonbValue *window, const PermissionRequest *request)
{
	JsonbContainer *object;

	if (time_within(window, request->ts))
		return NULL;
	object = window->val.binary.data;
	return psprintf("%s is outside of time_window (%s to %s UTC), which opens next at %s",
					format_utc(request->ts),
					string_of(member_of(object, "start")), string_of(member_of(object, "end")),
					format_utc(time_opens_at(window, request)));
}

/* ---- ip_allowlist ---- */

#define NETWORKS_EXPECTED "a list of networks in CIDR notation, such as \"10.0.0.0/8\" or \"2001:db8::/32\""

/*
 * IPv4 that is mapped into IPv6 (::ffff:10.0.0.0/104) as IPv4: a socket that
 * listens for both gives a client's address in that spelling, and it is the
 * same client.
 */
static Datum
unmapped(Datum address)
{
	static const unsigned char mapped[12] = {[10] = 0xff,[11] = 0xff};
	inet	   *given = DatumGetInetPP(address);
	inet	   *plain;

	if (ip_family(given) != PGSQL_AF_INET6 || ip_bits(given) < 96 ||
		memcmp(ip_addr(given), mapped, sizeof(mapped)) != 0)
		return address;
	plain = palloc0(sizeof(inet));
	ip_family(plain) = PGSQL_AF_INET;
	ip_bits(plain) = ip_bits(given) - 96;
	memcpy(ip_addr(plain), ip_addr(given) + sizeof(mapped), 4);
	SET_INET_VARSIZE(plain);
	return InetPGetDatum(plain);
}

/*
 * cidr takes "10" for 10.0.0.0/8; inet does not, and so a mistyped address
 * opens no network.
 */
static Datum
network_of(const char *text)
{
	if (strchr(text, '/') == NULL)
		(void) DirectFunctionCall1(inet_in, CStringGetDatum(text));
	return DirectFunctionCall1(cidr_in, CStringGetDatum(text));
}

static void
check_networks(const char *name, JsonbValue *value)
{
	StringList	networks = strings_of(value, name, NETWORKS_EXPECTED);
	char	   *network;

	while ((network = next_string(&networks, name, NETWORKS_EXPECTED)) != NULL)
		(void) network_of(network);
}

static bool
ip_listed(JsonbValue *list, inet *ip)
{
	Datum		address = unmapped(InetPGetDatum(ip));
	StringList	networks = strings_of(list, "ip_allowlist", NETWORKS_EXPECTED);
	char	   *network;

	while ((network = next_string(&networks, "ip_allowlist", NETWORKS_EXPECTED)) != NULL)
		if (DatumGetBool(DirectFunctionCall2(network_subeq, address, unmapped(network_of(network)))))
			return true;
	return false;
}

static char *
ip_refusal(JsonbValue *networks, const PermissionRequest *request)
{
	if (request->ip == NULL)
		return psprintf("the call gives no ip, and ip_allowlist (%s) asks for one",
						listed(networks, "ip_allowlist"));
	if (ip_listed(networks, request->ip))
		return NULL;
	return psprintf("the ip %s is in none of the networks of ip_allowlist (%s)",
					DatumGetCString(DirectFunctionCall1(inet_out, InetPGetDatum(request->ip))),
					listed(networks, "ip_allowlist"));
}

/* ---- patterns and actions ---- */

static bool
segment_is(const char *segment, int length, const char *text)
{
	return length == (int) strlen(text) && memcmp(segment, text, length) == 0;
}

/*
 * Segment by segment: * is one, whatever it holds; ** comes last (checked when
 * granted) and is all that is left, at least one; * alone is everything.
 */
static bool
resource_matches(const char *pattern, const char *resource)
{
	if (strcmp(pattern, "*") == 0)
		return true;
	for (;;)
	{
		int			plen = strcspn(pattern, ":");
		int			rlen = strcspn(resource, ":");

		if (segment_is(pattern, plen, "**"))
			return true;
		if (!segment_is(pattern, plen, "*") &&
			(plen != rlen || memcmp(pattern, resource, plen) != 0))
			return false;
		pattern += plen;
		resource += rlen;
		if (*pattern != *resource)
			return false;		/* one of them has ended */
		if (*pattern == '\0')
			return true;
		pattern++;
		resource++;
	}
}

static void
check_resource(const char *pattern)
{
	for (const char *segment = pattern;;)
	{
		int			length = strcspn(segment, ":");
		bool		last = segment[length] == '\0';

		if (memchr(segment, '*', length) != NULL &&
			!segment_is(segment, length, "*") &&
			!(last && segment_is(segment, length, "**")))
			ereport(ERROR,
					(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
					 errmsg("invalid resource pattern \"%s\"", pattern),
					 errdetail("A segment is literal or \"*\"; \"**\" can only be the last one."),
					 errhint("Write mcp:openai:* for one segment, or mcp:openai:** for any depth.")));
		if (last)
			return;
		segment += length + 1;
	}
}

static bool
action_listed(ArrayType *actions, const char *action)
{
	Datum	   *elements;
	int			count;

	deconstruct_array(actions, TEXTOID, -1, false, TYPALIGN_INT, &elements, NULL, &count);
	for (int i = 0; i < count; i++)
	{
		char	   *element = TextDatumGetCString(elements[i]);

		if (strcmp(element, "*") == 0 || strcmp(element, action) == 0)
			return true;
	}
	return false;
}

static void
check_actions(ArrayType *actions)
{
	Datum	   *elements;
	bool	   *nulls;
	int			count;

	deconstruct_array(actions, TEXTOID, -1, false, TYPALIGN_INT, &elements, &nulls, &count);
	if (count == 0 || ARR_NDIM(actions) != 1)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("actions must be a list of at least one action"),
				 errhint("Write ARRAY['execute'], or ARRAY['*'] for any action.")));
	for (int i = 0; i < count; i++)
	{
		if (nulls[i])
			ereport(ERROR,
					(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
					 errmsg("actions must not contain NULL")));
		check_id(TextDatumGetCString(elements[i]), "action");
	}
}

static void
check_constraints(Jsonb *constraints)
{
	JsonbIterator *iterator = JsonbIteratorInit(&constraints->root);
	JsonbValue	key,
				value;

	JsonbIteratorNext(&iterator, &value, true); /* the object's begin */
	while (JsonbIteratorNext(&iterator, &key, true) == WJB_KEY)
	{
		int			i = 0;

		JsonbIteratorNext(&iterator, &value, true);
		while (i < (int) lengthof(constraint_kinds) && !string_is(&key, constraint_kinds[i].name))
			i++;
		if (i == lengthof(constraint_kinds))
			ereport(ERROR,
					(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
					 errmsg("unrecognized constraint \"%s\"", string_of(&key)),
					 errdetail("Valid constraints are max_calls_per_hour, allowed_arg_patterns, time_window and ip_allowlist.")));
		constraint_kinds[i].check(constraint_kinds[i].name, &value);
	}
}

/* SQL: kavach.check_permission(resource, actions, constraints) */
static Datum
kavach_check_permission_checked(PG_FUNCTION_ARGS)
{
	static const char *const names[] = {"resource", "actions", "constraints"};

	for (int i = 0; i < (int) lengthof(names); i++)
		if (PG_ARGISNULL(i))
			ereport(ERROR,
					(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
					 errmsg("%s must not be NULL", names[i])));
	check_resource(required_text_arg(fcinfo, 0, names[0], MAX_RESOURCE_BYTES));
	check_actions(PG_GETARG_ARRAYTYPE_P(1));
	check_constraints(object_arg(fcinfo, 2, names[2]));
	PG_RETURN_BOOL(true);
}

/* ---- the decision ---- */

/* What of a matching permission does not hold. */
typedef struct Failure
{
	const ConstraintKind *kind; /* the first; NULL: all hold */
	char	   *reason;
	TimestampTz opens_at;		/* when all hold by time alone, or DT_NOEND */
} Failure;

static Failure
find_failure(const Permission *permission, const PermissionRequest *request)
{
	Failure		failure = {.opens_at = DT_NOBEGIN};

	for (int i = 0; i < (int) lengthof(constraint_kinds) && failure.opens_at != DT_NOEND; i++)
	{
		const ConstraintKind *kind = &constraint_kinds[i];
		JsonbValue *value = kind->refusal ? member_of(&permission->constraints->root, kind->name) : NULL;
		char	   *reason = value ? kind->refusal(value, request) : NULL;

		if (reason == NULL)
			continue;
		if (failure.kind == NULL)
		{
			failure.kind = kind;
			failure.reason = reason;
		}
		failure.opens_at = kind->opens_at ? Max(failure.opens_at, kind->opens_at(value, request)) : DT_NOEND;
	}
	return failure;
}

static int64
max_calls_per_hour(const Permission *permission)
{
	JsonbValue *value = member_of(&permission->constraints->root, "max_calls_per_hour");

	return value == NULL ? 0 : rate_of("max_calls_per_hour", value);
}

static char *
denied_reason(const char *agent_id, const PermissionRequest *request, int npermissions)
{
	char	   *grant = psprintf("SELECT kavach_grant_permission(%s, %s, ARRAY[%s])",
								 quote_literal_cstr(agent_id),
								 quote_literal_cstr(request->resource),
								 quote_literal_cstr(request->action));

	if (npermissions == 0)
		return psprintf("the agent has no permission at all; to grant one: %s", grant);
	if (npermissions == 1)
		return psprintf("the agent's only permission does not allow this action on this resource; to allow it: %s",
						grant);
	return psprintf("none of the agent's %d permissions allows this action on this resource; to allow it: %s",
					npermissions, grant);
}

/*
 * The permissions that match and whose constraints hold, but for the rate per
 * hour, which is looked at when budgets are.  If none is left, the first
 * matching one says why.
 */
PermissionVerdict
permission_check(const Profile *profile, const PermissionRequest *request)
{
	PermissionVerdict verdict = {.opens_at = DT_NOEND};
	int			count = profile->npermissions;

	verdict.candidates = palloc(sizeof(Candidate) * Max(count, 1));
	for (int i = 0; i < count; i++)
	{
		const Permission *permission = &profile->permissions[i];
		Failure		failure;

		if (!resource_matches(permission->resource, request->resource) ||
			!action_listed(permission->actions, request->action))
			continue;
		failure = find_failure(permission, request);
		if (failure.kind == NULL)
		{
			Candidate  *candidate = &verdict.candidates[verdict.ncandidates++];

			candidate->permission_id = permission->permission_id;
			candidate->max_calls_per_hour = max_calls_per_hour(permission);
			continue;
		}
		verdict.opens_at = Min(verdict.opens_at, failure.opens_at);
		if (verdict.code == NULL)
		{
			verdict.code = failure.kind->code;
			verdict.reason = psprintf("permission %lld: %s",
									  (long long) permission->permission_id, failure.reason);
		}
	}
	if (verdict.ncandidates == 0 && verdict.code == NULL)
	{
		verdict.code = "permission_denied";
		verdict.reason = denied_reason(profile->agent.agent_id, request, count);
	}
	return verdict;
}
