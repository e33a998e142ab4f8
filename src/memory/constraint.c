/*-------------------------------------------------------------------------
 * constraint.c
 *		The constraints of a permission: checked, and made ready.
 *
 * They are JSON, as they were granted, and were checked then.  For calls they
 * are compiled, once, into what is cached of the agent: patterns for LIKE,
 * microseconds of the day, networks.  How they are applied is in permission.c.
 *
 * A value that cannot be read all the same (somebody has written it by hand) is
 * an error for a call that it would be applied to, so that nothing is admitted
 * by mistake, and for no other: so compiling raises none, but notes it.
 *
 * To add a constraint: a kind, and here its name, how its value is checked and
 * how it is compiled.
 *-------------------------------------------------------------------------
 */
#include "memory/constraint.h"

#include <sys/socket.h>

#include "lib/stringinfo.h"
#include "utils/builtins.h"
#include "utils/inet.h"
#include "utils/numeric.h"

typedef struct ConstraintInfo
{
	/* an error, unless it can be read */
	void		(*check) (const char *name, JsonbValue *value);
	/* into the Constraints at an offset: whether it could be read */
	bool		(*compile) (Flat *flat, uint32 at, JsonbValue *value);
} ConstraintInfo;

static void check_globs(const char *name, JsonbValue *value);
static void check_time_window(const char *name, JsonbValue *value);
static void check_networks(const char *name, JsonbValue *value);
static void check_rate(const char *name, JsonbValue *value);
static bool compile_globs(Flat *flat, uint32 at, JsonbValue *value);
static bool compile_time_window(Flat *flat, uint32 at, JsonbValue *value);
static bool compile_networks(Flat *flat, uint32 at, JsonbValue *value);
static bool compile_rate(Flat *flat, uint32 at, JsonbValue *value);

const char *const constraint_names[NUM_CONSTRAINTS] = {
	[CONSTRAINT_ARGUMENTS] = "allowed_arg_patterns",
	[CONSTRAINT_TIME] = "time_window",
	[CONSTRAINT_IP] = "ip_allowlist",
	[CONSTRAINT_RATE] = "max_calls_per_hour",
};

static const ConstraintInfo constraint_infos[NUM_CONSTRAINTS] = {
	[CONSTRAINT_ARGUMENTS] = {check_globs, compile_globs},
	[CONSTRAINT_TIME] = {check_time_window, compile_time_window},
	[CONSTRAINT_IP] = {check_networks, compile_networks},
	[CONSTRAINT_RATE] = {check_rate, compile_rate},
};

#define CONSTRAINTS_AT(flat, at) FLAT_AT(flat, Constraints, at)

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

/* Whether it is a list that has strings, and nothing else; they are those up to what is no string. */
static bool
read_strings(JsonbValue *list, char ***strings, int *count)
{
	JsonbIterator *iterator;
	JsonbValue	element;

	*count = 0;
	if (list->type != jbvBinary ||
		!JsonContainerIsArray(list->val.binary.data) ||
		JsonContainerIsScalar(list->val.binary.data) ||
		JsonContainerSize(list->val.binary.data) == 0)
		return false;
	*strings = palloc(sizeof(char *) * JsonContainerSize(list->val.binary.data));
	iterator = JsonbIteratorInit(list->val.binary.data);
	JsonbIteratorNext(&iterator, &element, true);	/* the array's begin */
	while (JsonbIteratorNext(&iterator, &element, true) == WJB_ELEM)
	{
		if (element.type != jbvString)
			return false;
		(*strings)[(*count)++] = string_of(&element);
	}
	return true;
}

static void
add_strings(Flat *flat, uint32 pointer, char **strings, int count)
{
	uint32		array = flat_array(flat, pointer, sizeof(char *) * count);

	for (int i = 0; i < count; i++)
		flat_string(flat, array + i * sizeof(char *), strings[i]);
}

/* ---- max_calls_per_hour ---- */

/* 0 if it is no rate. */
static int64
rate_of(JsonbValue *value)
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
	return rate;
}

static void
check_rate(const char *name, JsonbValue *value)
{
	if (rate_of(value) == 0)
		refuse_value(name, "a whole number from 1 to 2147483647");
}

static bool
compile_rate(Flat *flat, uint32 at, JsonbValue *value)
{
	int64		rate = rate_of(value);

	CONSTRAINTS_AT(flat, at)->max_calls_per_hour = rate;
	return rate > 0;
}

/* ---- allowed_arg_patterns ---- */

#define GLOBS_EXPECTED "a list of patterns, with * for any text and ? for any character"

static void
check_globs(const char *name, JsonbValue *value)
{
	char	  **globs;
	int			count;
	bool		whole = read_strings(value, &globs, &count);

	for (int i = 0; i < count; i++)
	{
		int			length = strlen(globs[i]);
		int			backslashes = 0;

		while (backslashes < length && globs[i][length - 1 - backslashes] == '\\')
			backslashes++;
		if (backslashes % 2 != 0)
			refuse_value(name, "a list of patterns in which every backslash is followed by what it quotes");
	}
	if (!whole)
		refuse_value(name, GLOBS_EXPECTED);
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

static bool
compile_globs(Flat *flat, uint32 at, JsonbValue *value)
{
	char	  **globs;
	int			count;
	uint32		patterns;

	if (!read_strings(value, &globs, &count))
		return false;
	CONSTRAINTS_AT(flat, at)->nglobs = count;
	add_strings(flat, FLAT_MEMBER(Constraints, globs, at), globs, count);
	patterns = flat_array(flat, FLAT_MEMBER(Constraints, patterns, at), sizeof(text *) * count);
	for (int i = 0; i < count; i++)
		flat_datum(flat, patterns + i * sizeof(text *), like_pattern(globs[i]));
	return true;
}

/* ---- time_window ---- */

#define WINDOW_EXPECTED "{\"start\": \"HH:MM\", \"end\": \"HH:MM\"} in UTC, two different times"

/* "HH:MM" or "HH:MM:SS", or NULL if it is neither. */
static char *
time_string(JsonbValue *value)
{
	static const char *const shape = "dd:dd:dd";
	char	   *string;
	int			length;

	if (value == NULL || value->type != jbvString)
		return NULL;
	string = string_of(value);
	length = strlen(string);
	if (length != 5 && length != 8)
		return NULL;
	for (int i = 0; i < length; i++)
		if (shape[i] == 'd' ? (string[i] < '0' || string[i] > '9') : string[i] != shape[i])
			return NULL;
	return string;
}

/* Microseconds of the day; -1 if it is no time of a day.  60 seconds are the next minute, as for the server. */
static TimeADT
time_of_day(const char *string)
{
	int			hour = (string[0] - '0') * 10 + string[1] - '0';
	int			minute = (string[3] - '0') * 10 + string[4] - '0';
	int			second = string[5] == ':' ? (string[6] - '0') * 10 + string[7] - '0' : 0;
	TimeADT		time = hour * USECS_PER_HOUR + minute * USECS_PER_MINUTE + second * USECS_PER_SEC;

	return minute > 59 || second > 60 || time > USECS_PER_DAY ? -1 : time;
}

/* The same by the server, which says of "25:00" what it says of any time; -1 if it does not look like one. */
static TimeADT
require_time_of_day(JsonbValue *value)
{
	char	   *string = time_string(value);

	if (string == NULL)
		return -1;
	return DatumGetTimeADT(DirectFunctionCall3(time_in, CStringGetDatum(string),
											   ObjectIdGetDatum(InvalidOid), Int32GetDatum(-1)));
}

static bool
is_pair(const JsonbValue *window)
{
	return window->type == jbvBinary && JsonContainerIsObject(window->val.binary.data) &&
		JsonContainerSize(window->val.binary.data) == 2;
}

static bool
is_window(TimeADT opens, TimeADT closes)
{
	return opens >= 0 && closes >= 0 && opens != closes && opens != USECS_PER_DAY;
}

static void
check_time_window(const char *name, JsonbValue *value)
{
	TimeADT		opens,
				closes;

	if (!is_pair(value) ||
		(opens = require_time_of_day(member_of(value->val.binary.data, "start"))) < 0 ||
		(closes = require_time_of_day(member_of(value->val.binary.data, "end"))) < 0 ||
		!is_window(opens, closes))
		refuse_value(name, WINDOW_EXPECTED);
}

static bool
compile_time_window(Flat *flat, uint32 at, JsonbValue *value)
{
	char	   *opening = is_pair(value) ? time_string(member_of(value->val.binary.data, "start")) : NULL;
	char	   *closing = is_pair(value) ? time_string(member_of(value->val.binary.data, "end")) : NULL;
	TimeADT		opens,
				closes;

	if (opening == NULL || closing == NULL)
		return false;
	opens = time_of_day(opening);
	closes = time_of_day(closing);
	if (!is_window(opens, closes))
		return false;
	CONSTRAINTS_AT(flat, at)->opens = opens;
	CONSTRAINTS_AT(flat, at)->closes = closes;
	flat_string(flat, FLAT_MEMBER(Constraints, opening, at), opening);
	flat_string(flat, FLAT_MEMBER(Constraints, closing, at), closing);
	return true;
}

/* ---- ip_allowlist ---- */

#define NETWORKS_EXPECTED "a list of networks in CIDR notation, such as \"10.0.0.0/8\" or \"2001:db8::/32\""

/*
 * IPv4 that is mapped into IPv6 (::ffff:10.0.0.0/104) as IPv4: a socket that
 * listens for both gives a client's address in that spelling, and it is the
 * same client.
 */
inet *
plain_address(inet *address)
{
	static const unsigned char mapped[12] = {[10] = 0xff,[11] = 0xff};
	inet	   *plain;

	if (ip_family(address) != PGSQL_AF_INET6 || ip_bits(address) < 96 ||
		memcmp(ip_addr(address), mapped, sizeof(mapped)) != 0)
		return address;
	plain = palloc0(sizeof(inet));
	ip_family(plain) = PGSQL_AF_INET;
	ip_bits(plain) = ip_bits(address) - 96;
	memcpy(ip_addr(plain), ip_addr(address) + sizeof(mapped), 4);
	SET_INET_VARSIZE(plain);
	return plain;
}

/*
 * cidr takes "10" for 10.0.0.0/8; inet does not, and so a mistyped address
 * opens no network.
 */
static void
check_networks(const char *name, JsonbValue *value)
{
	char	  **networks;
	int			count;
	bool		whole = read_strings(value, &networks, &count);

	for (int i = 0; i < count; i++)
	{
		if (strchr(networks[i], '/') == NULL)
			(void) DirectFunctionCall1(inet_in, CStringGetDatum(networks[i]));
		(void) DirectFunctionCall1(cidr_in, CStringGetDatum(networks[i]));
	}
	if (!whole)
		refuse_value(name, NETWORKS_EXPECTED);
}

/* As check_networks would take it, without an error: NULL if it would not. */
static inet *
read_network(const char *string)
{
	inet	   *network = palloc0(sizeof(inet));
	bool		plain = strchr(string, '/') == NULL;
	int			bits;

	ip_family(network) = strchr(string, ':') ? PGSQL_AF_INET6 : PGSQL_AF_INET;
	bits = pg_inet_net_pton(ip_family(network), string, ip_addr(network), plain ? (size_t) -1 : ip_addrsize(network));
	if (bits < 0 || bits > ip_maxbits(network))
		return NULL;
	ip_bits(network) = bits;
	SET_INET_VARSIZE(network);
	/* cidr refuses bits to the right of the mask */
	if (!DatumGetBool(DirectFunctionCall2(network_eq, InetPGetDatum(network),
										  DirectFunctionCall1(network_network, InetPGetDatum(network)))))
		return NULL;
	return plain_address(network);
}

static bool
compile_networks(Flat *flat, uint32 at, JsonbValue *value)
{
	char	  **networks;
	int			count;
	uint32		addresses;

	if (!read_strings(value, &networks, &count))
		return false;
	CONSTRAINTS_AT(flat, at)->nnetworks = count;
	add_strings(flat, FLAT_MEMBER(Constraints, networks, at), networks, count);
	addresses = flat_array(flat, FLAT_MEMBER(Constraints, addresses, at), sizeof(inet *) * count);
	for (int i = 0; i < count; i++)
	{
		inet	   *network = read_network(networks[i]);

		if (network == NULL)
			return false;
		flat_datum(flat, addresses + i * sizeof(inet *), network);
	}
	return true;
}

/* ---- all of them ---- */

/* An error unless constraints that are to be granted, an object, are well formed. */
void
constraint_check(Jsonb *constraints)
{
	JsonbIterator *iterator = JsonbIteratorInit(&constraints->root);
	JsonbValue	key,
				value;

	JsonbIteratorNext(&iterator, &value, true); /* the object's begin */
	while (JsonbIteratorNext(&iterator, &key, true) == WJB_KEY)
	{
		int			kind = 0;

		JsonbIteratorNext(&iterator, &value, true);
		while (kind < NUM_CONSTRAINTS && !string_is(&key, constraint_names[kind]))
			kind++;
		if (kind == NUM_CONSTRAINTS)
			ereport(ERROR,
					(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
					 errmsg("unrecognized constraint \"%s\"", string_of(&key)),
					 errdetail("Valid constraints are max_calls_per_hour, allowed_arg_patterns, time_window and ip_allowlist.")));
		constraint_infos[kind].check(constraint_names[kind], &value);
	}
}

/* Adds what was granted, and has the pointer at an offset point at it; it stays NULL where nothing is constrained. */
void
constraint_compile(Flat *flat, uint32 pointer, Jsonb *constraints)
{
	uint32		at = 0;

	for (int kind = 0; kind < NUM_CONSTRAINTS; kind++)
	{
		JsonbValue *value = member_of(&constraints->root, constraint_names[kind]);

		if (value == NULL)
			continue;
		if (at == 0)
			at = flat_array(flat, pointer, sizeof(Constraints));
		CONSTRAINTS_AT(flat, at)->present |= 1 << kind;
		if (!constraint_infos[kind].compile(flat, at, value))
			CONSTRAINTS_AT(flat, at)->unreadable |= 1 << kind;
	}
	if (at != 0 && CONSTRAINTS_AT(flat, at)->unreadable != 0)
		flat_datum(flat, FLAT_MEMBER(Constraints, stored, at), constraints);
}

/* Whether there is such a constraint, to be applied now; an error where its value cannot be read. */
bool
constraint_read(const Constraints *constraints, ConstraintKind kind)
{
	if (constraints == NULL || (constraints->present & (1 << kind)) == 0)
		return false;
	if ((constraints->unreadable & (1 << kind)) != 0)
	{
		constraint_infos[kind].check(constraint_names[kind],
									 member_of(&constraints->stored->root, constraint_names[kind]));
		elog(ERROR, "constraint \"%s\" is not compiled", constraint_names[kind]);
	}
	return true;
}
