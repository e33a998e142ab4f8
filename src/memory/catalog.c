/*-------------------------------------------------------------------------
 * catalog.c
 *		Agents, permissions and policies, looked up and cached.
 *
 * A profile is all that a call needs to know of an agent: itself, its
 * permissions, the limits that bind it.  It is put together from four parts,
 * which are cached for all sessions (cache.c): what is known of the agent (the
 * limits that name it included), the limits that name its user, those that
 * name its tenant, and what binds everybody.  That a subject has no limits is
 * a part, too.  What a reset has forgiven a subject is in the subject's part,
 * whoever's the limit is.
 *
 * A call copies the parts, and uses them if their generations stand (change.c).
 * Otherwise one query reads all of them, in the latest snapshot, and what was
 * read is cached, unless somebody is just changing it.  So a change that has
 * committed is obeyed by the next call in every session, also in a transaction
 * already open.
 *
 * A transaction that has changed any of these tables itself reads past the
 * cache and puts nothing in until it ends, since it may yet roll back.  Nothing
 * is cached on a standby, whose changes fire no trigger, nor where kavach is not
 * preloaded.
 *
 * What names an agent goes with it (kavach_forget_agent), in the latest snapshot:
 * a transaction that is REPEATABLE READ must not leave a permission that was
 * granted meanwhile to the next agent of that id.  So are grants that are there
 * already found, and those that are not to stay taken away.
 *-------------------------------------------------------------------------
 */
#include "memory/catalog.h"

#include "access/xlog.h"
#include "catalog/pg_type.h"
#include "lib/stringinfo.h"
#include "port/atomics.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/memutils.h"

#include "memory/cache.h"
#include "memory/change.h"
#include "memory/flat.h"
#include "server/argument.h"
#include "server/clock.h"
#include "server/lock.h"
#include "server/query.h"

ENTRY_POINT(kavach_forget_agent, 1, 0);
ENTRY_POINT(kavach_permissions_of, 1, 0);
ENTRY_POINT(kavach_find_permission, 4, 0);
ENTRY_POINT(kavach_keep_permissions, 2, 0);

/* A limit, and what was forgiven, as they are cached. */
typedef struct PartLimit
{
	char	   *policy_id;
	int64		amount;
	uint8		scope;
	uint8		each;
	uint8		action;
	uint8		measure;
	uint8		period;
} PartLimit;

typedef struct PartBaseline
{
	char	   *policy_id;
	TimestampTz start;
	int64		usage;
	uint8		measure;
	uint8		period;
} PartBaseline;

/* What is known of a user, a tenant or everybody; of an agent it is the beginning. */
typedef struct Part
{
	char	   *id;				/* first; NULL: everybody */
	PartLimit  *limits;			/* that name it, or nobody */
	PartBaseline *baselines;
	int			nlimits;
	int			nbaselines;
} Part;

typedef struct AgentPart
{
	Part		part;
	Agent		agent;
	Permission *permissions;
	int			npermissions;
} AgentPart;

/*
 * What parts are read from, a row each: 1 the agent, 2 a permission, 3 a limit,
 * 4 what was forgiven.  Policies are found by scope and subject, an index each
 * (OFFSET 0 keeps them from being joined in another way).  %1$s are the scopes,
 * %2$s those with ids and the ids.
 */
#define LIMIT_COLUMNS \
	"SELECT 3 AS part, p.policy_id, p.scope, p.action, l.measure, l.period, p.subject IS NULL AS flag," \
	"       l.amount AS number, NULL::bigint, p.each, NULL::timestamptz, NULL::text[], NULL::jsonb"
#define LIMITS \
	" CROSS JOIN LATERAL (SELECT * FROM kavach.budget_limit n WHERE n.policy_id = p.policy_id OFFSET 0) l" \
	" WHERE p.enabled"
#define BASELINE_COLUMNS \
	"SELECT 4, b.policy_id, p.scope, NULL, b.measure, b.period, b.subject IS NULL," \
	"       NULL, b.usage, NULL, b.period_start, NULL, NULL"
#define POLICY_OF_BASELINE \
	" CROSS JOIN LATERAL (SELECT * FROM kavach.budget_policy n WHERE n.policy_id = b.policy_id OFFSET 0) p"

#define LIMITS_OF(subjects) \
	LIMIT_COLUMNS \
	"  FROM " subjects " AS s (scope, subject)" \
	" CROSS JOIN LATERAL (SELECT * FROM kavach.budget_policy n WHERE n.scope = s.scope AND n.subject = s.subject OFFSET 0) p" \
	LIMITS \
	" UNION ALL " \
	LIMIT_COLUMNS \
	"  FROM (VALUES %1$s) AS s (scope)" \
	" CROSS JOIN LATERAL (SELECT * FROM kavach.budget_policy n WHERE n.scope = s.scope AND n.subject IS NULL OFFSET 0) p" \
	LIMITS \
	" UNION ALL " \
	BASELINE_COLUMNS \
	"  FROM " subjects " AS s (scope, subject)" \
	" CROSS JOIN LATERAL (SELECT * FROM kavach.budget_baseline n WHERE n.subject = s.subject OFFSET 0) b" \
	POLICY_OF_BASELINE \
	" WHERE p.scope = s.scope" \
	" UNION ALL " \
	BASELINE_COLUMNS \
	"  FROM (SELECT * FROM kavach.budget_baseline n WHERE n.subject IS NULL OFFSET 0) b" \
	POLICY_OF_BASELINE

#define PROFILE \
	"WITH a AS MATERIALIZED (SELECT * FROM kavach.agent WHERE agent_id = $1)" \
	"SELECT 1 AS part, user_id, tenant_id, status_reason, NULL, NULL, status = 'revoked' AS flag," \
	"       NULL::bigint AS number, NULL::bigint, NULL::boolean, expires_at, NULL::text[], NULL::jsonb" \
	"  FROM a" \
	" UNION ALL " \
	"SELECT 2, resource, NULL, NULL, NULL, NULL, NULL, permission_id, NULL, NULL, NULL, actions, constraints" \
	"  FROM kavach.permission WHERE agent_id = $1" \
	" UNION ALL " \
	LIMITS_OF("a CROSS JOIN LATERAL (VALUES %2$s)") \
	" ORDER BY part, number"

static Statement find_profile = {
	.nargs = 1,
	.argtypes = {TEXTOID},
};

/* An id for each scope that has any. */
static Statement find_limits = {
	.nargs = SCOPE_ALL,
	.argtypes = {TEXTOID, TEXTOID, TEXTOID},
};

static Statement revoke_agent = {
	.sql = "UPDATE kavach.agent SET status = 'revoked', status_reason = $2, status_changed_at = $3"
	" WHERE agent_id = $1 AND status <> 'revoked'",
	.nargs = 3,
	.argtypes = {TEXTOID, TEXTOID, TIMESTAMPTZOID},
};

/* Whose parts make up a profile: one at most of each scope. */
typedef struct Ids
{
	const char *of[NUM_SCOPES];
} Ids;

/* ---- the statements, from the table of scopes ---- */

static char *
list_scopes(void)
{
	StringInfoData list;

	initStringInfo(&list);
	for (int scope = 0; scope < NUM_SCOPES; scope++)
		appendStringInfo(&list, "%s('%s')", scope == 0 ? "" : ", ", scopes[scope].name);
	return list.data;
}

/* Those with ids: these are columns of "a", or parameters. */
static char *
list_subjects(bool columns)
{
	StringInfoData list;

	initStringInfo(&list);
	for (int scope = 0; scope < SCOPE_ALL; scope++)
	{
		appendStringInfo(&list, "%s('%s', ", scope == 0 ? "" : ", ", scopes[scope].name);
		if (columns)
			appendStringInfo(&list, "a.%s)", scopes[scope].column);
		else
			appendStringInfo(&list, "$%d)", scope + 1);
	}
	return list.data;
}

static Statement *
profile_statement(void)
{
	if (find_profile.sql == NULL)
		find_profile.sql = MemoryContextStrdup(TopMemoryContext,
											   psprintf(PROFILE, list_scopes(), list_subjects(true)));
	return &find_profile;
}

static Statement *
limits_statement(void)
{
	if (find_limits.sql == NULL)
		find_limits.sql = MemoryContextStrdup(TopMemoryContext,
											  psprintf(LIMITS_OF("(VALUES %2$s)"), list_scopes(), list_subjects(false)));
	return &find_limits;
}

/* ---- reading parts from the tables ---- */

static int
part_of(uint64 row)
{
	bool		isnull;

	return DatumGetInt32(query_datum(row, 1, &isnull));
}

/* In whose part a limit, or what was forgiven, is: its subject's, or everybody's. */
static ScopeKind
scope_of(uint64 row)
{
	bool		isnull;

	return DatumGetBool(query_datum(row, 7, &isnull)) ? SCOPE_ALL : scope_named(query_text(row, 3));
}

static void
read_limit(Flat *flat, uint32 at, uint64 row)
{
	PartLimit  *limit = FLAT_AT(flat, PartLimit, at);
	bool		isnull;

	limit->scope = scope_named(query_text(row, 3));
	limit->action = action_named(query_text(row, 4));
	limit->measure = measure_named(query_text(row, 5));
	limit->period = period_named(query_text(row, 6));
	limit->amount = query_int64(row, 8).value;
	limit->each = DatumGetBool(query_datum(row, 10, &isnull));
	flat_string(flat, FLAT_MEMBER(PartLimit, policy_id, at), query_text(row, 2));
}

static void
read_baseline(Flat *flat, uint32 at, uint64 row)
{
	PartBaseline *baseline = FLAT_AT(flat, PartBaseline, at);
	bool		isnull;

	baseline->measure = measure_named(query_text(row, 5));
	baseline->period = period_named(query_text(row, 6));
	baseline->usage = query_int64(row, 9).value;
	baseline->start = DatumGetTimestampTz(query_datum(row, 11, &isnull));
	flat_string(flat, FLAT_MEMBER(PartBaseline, policy_id, at), query_text(row, 2));
}

/* An array of what rows of a kind hold for a scope; returns how many there are. */
static int
read_array(Flat *flat, uint32 pointer, Size size, int kind, ScopeKind scope, uint64 nrows,
		   void (*read) (Flat *flat, uint32 at, uint64 row))
{
	int			count = 0;
	uint32		array;

	for (uint64 row = 0; row < nrows; row++)
		if (part_of(row) == kind && scope_of(row) == scope)
			count++;
	if (count == 0)
		return 0;
	array = flat_array(flat, pointer, size * count);
	count = 0;
	for (uint64 row = 0; row < nrows; row++)
		if (part_of(row) == kind && scope_of(row) == scope)
			read(flat, array + size * count++, row);
	return count;
}

/* What is known of a subject, in a part that is there already. */
static void
read_part(Flat *flat, ScopeKind scope, const char *id, uint64 nrows)
{
	int			nlimits;
	int			nbaselines;

	flat_string(flat, FLAT_MEMBER(Part, id, 0), id);
	nlimits = read_array(flat, FLAT_MEMBER(Part, limits, 0), sizeof(PartLimit), 3, scope, nrows, read_limit);
	nbaselines = read_array(flat, FLAT_MEMBER(Part, baselines, 0), sizeof(PartBaseline), 4, scope, nrows, read_baseline);
	FLAT_AT(flat, Part, 0)->nlimits = nlimits;
	FLAT_AT(flat, Part, 0)->nbaselines = nbaselines;
}

static void
read_actions(Flat *flat, uint32 at, uint64 row)
{
	Datum	   *elements;
	bool	   *nulls;
	int			count;
	uint32		array;
	bool		isnull;

	deconstruct_array(DatumGetArrayTypeP(query_datum(row, 12, &isnull)), TEXTOID, -1, false, TYPALIGN_INT,
					  &elements, &nulls, &count);
	for (int i = 0; i < count; i++)
		if (nulls[i])
			return;
	array = flat_array(flat, FLAT_MEMBER(Permission, actions, at), sizeof(char *) * count);
	FLAT_AT(flat, Permission, at)->nactions = count;
	for (int i = 0; i < count; i++)
		flat_string(flat, array + i * sizeof(char *), TextDatumGetCString(elements[i]));
}

static void
read_permission(Flat *flat, uint32 at, uint64 row)
{
	bool		isnull;

	FLAT_AT(flat, Permission, at)->permission_id = query_int64(row, 8).value;
	flat_string(flat, FLAT_MEMBER(Permission, resource, at), query_text(row, 2));
	read_actions(flat, at, row);
	constraint_compile(flat, FLAT_MEMBER(Permission, constraints, at), DatumGetJsonbP(query_datum(row, 13, &isnull)));
}

static void
read_agent(Flat *flat, const Ids *ids, uint64 nrows)
{
	Agent	   *agent = &FLAT_AT(flat, AgentPart, 0)->agent;
	uint64		npermissions = 0;
	uint32		array;
	bool		isnull;

	agent->revoked = DatumGetBool(query_datum(0, 7, &isnull));
	agent->expires_at = DatumGetTimestampTz(query_datum(0, 11, &isnull));
	agent->expires = !isnull;
	flat_string(flat, FLAT_MEMBER(AgentPart, agent.agent_id, 0), ids->of[SCOPE_AGENT]);
	flat_string(flat, FLAT_MEMBER(AgentPart, agent.user_id, 0), ids->of[SCOPE_USER]);
	flat_string(flat, FLAT_MEMBER(AgentPart, agent.tenant_id, 0), ids->of[SCOPE_TENANT]);
	flat_string(flat, FLAT_MEMBER(AgentPart, agent.status_reason, 0), query_text(0, 4));

	while (npermissions + 1 < nrows && part_of(npermissions + 1) == 2)
		npermissions++;
	array = flat_array(flat, FLAT_MEMBER(AgentPart, permissions, 0), sizeof(Permission) * npermissions);
	FLAT_AT(flat, AgentPart, 0)->npermissions = (int) npermissions;
	for (uint64 i = 0; i < npermissions; i++)
		read_permission(flat, array + sizeof(Permission) * i, i + 1);
}

/* ---- the parts of a call, from the cache or the tables ---- */

/* By ScopeKind. */
typedef struct Lookup
{
	bool		known[NUM_SCOPES];	/* of whom that part is: there is a key */
	CacheKey	keys[NUM_SCOPES];
	uint64		stamps[NUM_SCOPES];
	Part	   *parts[NUM_SCOPES];	/* NULL for none */
} Lookup;

/* Whether this transaction may use the cache, and fill it. */
static bool
may_cache(void)
{
	return cache_is_there() && !change_noted() && !RecoveryInProgress();
}

/* Copies the part of a subject out of the cache, if it is there. */
static void
copy_part(Lookup *lookup, CacheRoom *room, ScopeKind scope, const char *id)
{
	CacheKey   *key = &lookup->keys[scope];

	key->hash = subject_hash(scope, id);
	key->ledger = ledger_oid();
	key->scope = scope;
	key->id = id;
	lookup->known[scope] = true;
	lookup->parts[scope] = cache_read(key, room, &lookup->stamps[scope]);
}

/* Whether all that was asked for is there, and as it is now: all of it at one moment, see change.c. */
static bool
is_good(const Lookup *lookup)
{
	bool		good = true;

	for (int scope = 0; scope < NUM_SCOPES && good; scope++)
		good = !lookup->known[scope] ||
			(lookup->parts[scope] != NULL &&
			 lookup->stamps[scope] == change_generation(lookup->keys[scope].hash));
	cache_count(lookup->keys[SCOPE_AGENT].hash, good);
	return good;
}

static bool
copy_profile(Lookup *lookup, const char *agent_id)
{
	CacheRoom	room = cache_room();
	AgentPart  *part;

	copy_part(lookup, &room, SCOPE_AGENT, agent_id);
	copy_part(lookup, &room, SCOPE_ALL, NULL);
	part = (AgentPart *) lookup->parts[SCOPE_AGENT];
	if (part != NULL)
	{
		copy_part(lookup, &room, SCOPE_USER, part->agent.user_id);
		if (part->agent.tenant_id != NULL)
			copy_part(lookup, &room, SCOPE_TENANT, part->agent.tenant_id);
	}
	return is_good(lookup);
}

static bool
copy_limits(Lookup *lookup, const Ids *ids)
{
	CacheRoom	room = cache_room();

	for (int scope = 0; scope < NUM_SCOPES; scope++)
		if (scope == SCOPE_ALL || ids->of[scope] != NULL)
			copy_part(lookup, &room, scope, ids->of[scope]);
	return is_good(lookup);
}

/* Before the snapshot of what is read: the generations that it is to be cached with. */
static void
read_generations(Lookup *lookup)
{
	for (int scope = 0; scope < NUM_SCOPES; scope++)
		if (lookup->known[scope])
			lookup->stamps[scope] = change_generation(lookup->keys[scope].hash);
	pg_read_barrier();
}

/*
 * Takes a part that was read, and caches it where it is known what it is to be
 * cached with: a user that was not known before is when it is looked up next.
 */
static void
take_part(Lookup *lookup, ScopeKind scope, const char *id, Flat *flat)
{
	if (lookup->known[scope] && same_text(lookup->keys[scope].id, id) &&
		!change_under_way(lookup->stamps[scope]))
		cache_write(&lookup->keys[scope], lookup->stamps[scope], flat);
	lookup->parts[scope] = flat_resolve(flat->bytes.data, (uint32 *) flat->pointers.data, flat_npointers(flat));
}

/* Takes the parts of a subject, but for what is there already, from the rows of a query. */
static void
take_parts(Lookup *lookup, const Ids *ids, ScopeKind first, uint64 nrows)
{
	for (int scope = first; scope < NUM_SCOPES; scope++)
	{
		Flat		flat;

		lookup->parts[scope] = NULL;
		if (scope != SCOPE_ALL && ids->of[scope] == NULL)
			continue;
		flat_init(&flat);
		flat_reserve(&flat, sizeof(Part));
		read_part(&flat, scope, ids->of[scope], nrows);
		take_part(lookup, scope, ids->of[scope], &flat);
	}
}

/* Reads the parts of a profile; false where there is no such agent. */
static bool
read_profile(Lookup *lookup, const char *agent_id)
{
	OwnerRights owner;
	Datum		values[] = {CStringGetTextDatum(agent_id)};
	uint64		nrows;
	bool		found;

	read_generations(lookup);
	query_begin(&owner);
	query_avoid_scans();
	nrows = query_select(profile_statement(), values, NULL);
	found = nrows > 0 && part_of(0) == 1;
	if (found)
	{
		Ids			ids = {{agent_id, query_text(0, 2), query_text(0, 3), NULL}};
		Flat		flat;

		flat_init(&flat);
		flat_reserve(&flat, sizeof(AgentPart));
		read_part(&flat, SCOPE_AGENT, agent_id, nrows);
		read_agent(&flat, &ids, nrows);
		take_part(lookup, SCOPE_AGENT, agent_id, &flat);
		take_parts(lookup, &ids, SCOPE_USER, nrows);
	}
	query_end(&owner);
	return found;
}

/* Reads the limits of a subject. */
static void
read_limits(Lookup *lookup, const Ids *ids)
{
	OwnerRights owner;
	Datum		values[SCOPE_ALL];
	char		nulls[SCOPE_ALL];
	bool		isnull;

	for (int i = 0; i < SCOPE_ALL; i++)
	{
		values[i] = text_or_null(ids->of[i], &isnull);
		nulls[i] = isnull ? 'n' : ' ';
	}
	lookup->known[SCOPE_AGENT] = false; /* its part is more than that */
	read_generations(lookup);
	query_begin(&owner);
	query_avoid_scans();
	take_parts(lookup, ids, SCOPE_AGENT, query_select(limits_statement(), values, nulls));
	query_end(&owner);
}

/* ---- what binds a call ---- */

/* What an "each" limit yields to: one of the same measure and window that names the subject, warnings apart. */
static uint32
rank_of(const PartLimit *limit)
{
	return (uint32) 1 << ((limit->measure * NUM_PERIODS + limit->period) * 2 + (limit->action == ACTION_WARN));
}

StaticAssertDecl(NUM_MEASURES * NUM_PERIODS * 2 <= 32, "a bit for each kind of limit");

/* Adds a limit, with what was forgiven its subject. */
static void
add_limit(BudgetLimit *to, const PartLimit *limit, const Part *subject)
{
	*to = (BudgetLimit)
	{
		.policy_id = limit->policy_id,
			.scope = limit->scope,
			.each = limit->each,
			.action = limit->action,
			.measure = limit->measure,
			.period = limit->period,
			.amount = limit->amount,
	};
	for (int i = 0; i < subject->nbaselines; i++)
	{
		const PartBaseline *baseline = &subject->baselines[i];

		if (baseline->measure == limit->measure && baseline->period == limit->period &&
			strcmp(baseline->policy_id, limit->policy_id) == 0)
		{
			to->has_baseline = true;
			to->baseline_start = baseline->start;
			to->baseline = baseline->usage;
		}
	}
}

/* The limits of all parts together, without those that yield. */
static BudgetLimit *
join_limits(Part *const *parts, int *count)
{
	const Part *all = parts[SCOPE_ALL];
	uint32		named[NUM_SCOPES] = {0};
	int			most = 0;
	BudgetLimit *limits;

	for (int scope = 0; scope < NUM_SCOPES; scope++)
		most += parts[scope] ? parts[scope]->nlimits : 0;
	limits = palloc(sizeof(BudgetLimit) * Max(most, 1));
	*count = 0;
	for (int scope = 0; scope < SCOPE_ALL; scope++)
		for (int i = 0; parts[scope] != NULL && i < parts[scope]->nlimits; i++)
		{
			const PartLimit *limit = &parts[scope]->limits[i];

			named[scope] |= rank_of(limit);
			add_limit(&limits[(*count)++], limit, parts[scope]);
		}
	for (int i = 0; i < all->nlimits; i++)
	{
		const PartLimit *limit = &all->limits[i];

		if (parts[limit->scope] != NULL && (named[limit->scope] & rank_of(limit)) == 0)
			add_limit(&limits[(*count)++], limit, parts[limit->scope]);
	}
	return limits;
}

/*
 * All that a call needs to know of an agent; NULL when there is none of that
 * id.
 */
const Profile *
catalog_profile(const char *agent_id)
{
	Lookup		lookup = {0};
	Profile    *profile;
	AgentPart  *part;

	if (!(may_cache() && copy_profile(&lookup, agent_id)) &&
		!read_profile(&lookup, agent_id))
		return NULL;
	part = (AgentPart *) lookup.parts[SCOPE_AGENT];
	profile = palloc(sizeof(Profile));
	profile->agent = part->agent;
	profile->permissions = part->permissions;
	profile->npermissions = part->npermissions;
	profile->limits = join_limits(lookup.parts, &profile->nlimits);
	return profile;
}

/*
 * The limits that bind a subject other than an agent with its present owner:
 * a settlement charges the owner of then.
 */
BudgetLimit *
catalog_limits(const SubjectList *subjects, int *count)
{
	Lookup		lookup = {0};

	Ids			ids = {{NULL}};

	for (int i = 0; i < subjects->count; i++)
		ids.of[subjects->subjects[i].scope] = subjects->subjects[i].id;
	if (!(may_cache() && copy_limits(&lookup, &ids)))
		read_limits(&lookup, &ids);
	return join_limits(lookup.parts, count);
}

/*
 * Revokes an agent for a budget.  Two refusals at once wait for each other
 * here, and the second finds nothing left to do.
 */
void
catalog_revoke_agent(const char *agent_id, const char *reason, TimestampTz ts)
{
	OwnerRights owner;
	Datum		values[] = {CStringGetTextDatum(agent_id), CStringGetTextDatum(reason), TimestampTzGetDatum(ts)};

	lock_hold(LOCK_REVOKE, agent_id);
	query_begin(&owner);
	query_execute(&revoke_agent, values, NULL);
	query_end(&owner);
}

/*
 * By agent; $2 is its scope.  Its policies are locked first, as whoever changes
 * one does: or a limit that is being added would outlast its policy.  What
 * depends on a policy goes before it.
 */
static Statement forget_agent[] = {
	{
		.sql = "SELECT FROM kavach.budget_policy WHERE scope = $2 AND subject = $1"
		" ORDER BY policy_id FOR UPDATE",
		.nargs = 2,
		.argtypes = {TEXTOID, TEXTOID},
	},
	{
		.sql = "DELETE FROM kavach.permission WHERE agent_id = $1",
		.nargs = 1,
		.argtypes = {TEXTOID},
	},
	{
		.sql = "DELETE FROM kavach.budget_baseline b USING kavach.budget_policy p"
		" WHERE p.scope = $2 AND b.policy_id = p.policy_id AND b.subject = $1",
		.nargs = 2,
		.argtypes = {TEXTOID, TEXTOID},
	},
	{
		.sql = "DELETE FROM kavach.budget_limit l USING kavach.budget_policy p"
		" WHERE p.scope = $2 AND p.subject = $1 AND l.policy_id = p.policy_id",
		.nargs = 2,
		.argtypes = {TEXTOID, TEXTOID},
	},
	{
		.sql = "DELETE FROM kavach.budget_policy WHERE scope = $2 AND subject = $1",
		.nargs = 2,
		.argtypes = {TEXTOID, TEXTOID},
	},
};

/* SQL: kavach.forget_agent(agent_id): whatever the id is, of a row that was written by hand, too */
static Datum
kavach_forget_agent_checked(PG_FUNCTION_ARGS)
{
	OwnerRights owner;
	Datum		values[2];

	if (PG_ARGISNULL(0))
		PG_RETURN_BOOL(false);
	values[0] = PG_GETARG_DATUM(0);
	values[1] = CStringGetTextDatum(scopes[SCOPE_AGENT].name);
	query_begin(&owner);
	query_avoid_scans();
	for (int i = 0; i < (int) lengthof(forget_agent); i++)
		(void) query_execute(&forget_agent[i], values, NULL);
	query_end(&owner);
	PG_RETURN_BOOL(true);
}

static Statement permissions_of = {
	.sql = "SELECT coalesce(array_agg(permission_id), '{}') FROM kavach.permission WHERE agent_id = $1",
	.nargs = 1,
	.argtypes = {TEXTOID},
};

/* SQL: kavach.permissions_of(agent_id), which is not NULL */
static Datum
kavach_permissions_of_checked(PG_FUNCTION_ARGS)
{
	OwnerRights owner;
	Datum		values[] = {PG_GETARG_DATUM(0)};
	Datum		ids;
	bool		isnull;

	query_begin(&owner);
	query_avoid_scans();
	(void) query_select(&permissions_of, values, NULL);
	ids = query_datum(0, 1, &isnull);
	query_end(&owner);
	PG_RETURN_DATUM(ids);
}

static Statement find_permission = {
	.sql = "SELECT min(permission_id) FROM kavach.permission"
	" WHERE agent_id = $1 AND resource = $2 AND actions @> $3 AND actions <@ $3 AND constraints = $4",
	.nargs = 4,
	.argtypes = {TEXTOID, TEXTOID, TEXTARRAYOID, JSONBOID},
};

/* SQL: kavach.find_permission(agent_id, resource, actions, constraints), none of them NULL */
static Datum
kavach_find_permission_checked(PG_FUNCTION_ARGS)
{
	OwnerRights owner;
	Datum		values[] = {PG_GETARG_DATUM(0), PG_GETARG_DATUM(1), PG_GETARG_DATUM(2), PG_GETARG_DATUM(3)};
	OptionalInt64 found;

	query_begin(&owner);
	query_avoid_scans();
	(void) query_select(&find_permission, values, NULL);
	found = query_int64(0, 1);
	query_end(&owner);
	if (!found.given)
		PG_RETURN_NULL();
	PG_RETURN_INT64(found.value);
}

static Statement keep_permissions = {
	.sql = "DELETE FROM kavach.permission WHERE agent_id = $1 AND permission_id <> ALL ($2)",
	.nargs = 2,
	.argtypes = {TEXTOID, INT8ARRAYOID},
};

/* SQL: kavach.keep_permissions(agent_id, permission_ids), none of them NULL */
static Datum
kavach_keep_permissions_checked(PG_FUNCTION_ARGS)
{
	OwnerRights owner;
	Datum		values[] = {PG_GETARG_DATUM(0), PG_GETARG_DATUM(1)};
	uint64		gone;

	query_begin(&owner);
	query_avoid_scans();
	gone = query_execute(&keep_permissions, values, NULL);
	query_end(&owner);
	PG_RETURN_BOOL(gone > 0);
}
