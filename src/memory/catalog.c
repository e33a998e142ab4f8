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
 * Those that are not there, or no longer good, it reads from the tables, in the
 * latest snapshot, and caches, unless somebody is just changing them: the agent's
 * first, which says whose the others are.  If all generations stand then, they
 * are as they were at one moment; otherwise all of them are read once more, in one
 * snapshot.  So a change that has committed is obeyed by the next call in every
 * session, also in a transaction already open.
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
#include "port/atomics.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/memutils.h"

#include "memory/cache.h"
#include "memory/change.h"
#include "memory/flat.h"
#include "server/argument.h"
#include "server/clock.h"
#include "server/find.h"
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

/* What parts are read from. */
enum
{
	AGENT_ID,
	AGENT_USER_ID,
	AGENT_TENANT_ID,
	AGENT_STATUS,
	AGENT_STATUS_REASON,
	AGENT_EXPIRES_AT
};

static Finder find_agent = {
	.table = {
		.name = "kavach.agent",
		.nkeys = 1,
		.ncolumns = 6,
		.columns = {
			{"agent_id", TEXTOID},
			{"user_id", TEXTOID},
			{"tenant_id", TEXTOID},
			{"status", TEXTOID},
			{"status_reason", TEXTOID},
			{"expires_at", TIMESTAMPTZOID},
		},
	},
};

enum
{
	PERMISSION_AGENT_ID,
	PERMISSION_ID,
	PERMISSION_RESOURCE,
	PERMISSION_ACTIONS,
	PERMISSION_CONSTRAINTS
};

static Finder find_permissions = {
	.table = {
		.name = "kavach.permission",
		.nkeys = 1,
		.ncolumns = 5,
		.columns = {
			{"agent_id", TEXTOID},
			{"permission_id", INT8OID},
			{"resource", TEXTOID},
			{"actions", TEXTARRAYOID},
			{"constraints", JSONBOID},
		},
	},
};

enum
{
	POLICY_SCOPE,
	POLICY_SUBJECT,
	POLICY_ID,
	POLICY_EACH,
	POLICY_ACTION,
	POLICY_ENABLED
};

static Finder find_policies = {
	.table = {
		.name = "kavach.budget_policy",
		.nkeys = 2,
		.ncolumns = 6,
		.columns = {
			{"scope", TEXTOID},
			{"subject", TEXTOID},
			{"policy_id", TEXTOID},
			{"each", BOOLOID},
			{"action", TEXTOID},
			{"enabled", BOOLOID},
		},
	},
};

enum
{
	LIMIT_POLICY_ID,
	LIMIT_MEASURE,
	LIMIT_PERIOD,
	LIMIT_AMOUNT
};

static Finder find_limits = {
	.table = {
		.name = "kavach.budget_limit",
		.nkeys = 1,
		.ncolumns = 4,
		.columns = {
			{"policy_id", TEXTOID},
			{"measure", TEXTOID},
			{"period", TEXTOID},
			{"amount", INT8OID},
		},
	},
};

enum
{
	BASELINE_SUBJECT,
	BASELINE_POLICY_ID,
	BASELINE_MEASURE,
	BASELINE_PERIOD,
	BASELINE_START,
	BASELINE_USAGE
};

static Finder find_baselines = {
	.table = {
		.name = "kavach.budget_baseline",
		.nkeys = 1,
		.ncolumns = 6,
		.columns = {
			{"subject", TEXTOID},
			{"policy_id", TEXTOID},
			{"measure", TEXTOID},
			{"period", TEXTOID},
			{"period_start", TIMESTAMPTZOID},
			{"usage", INT8OID},
		},
	},
};

static Statement revoke_agent = {
	.sql = "UPDATE kavach.agent SET status = 'revoked', status_reason = $2, status_changed_at = $3"
	" WHERE agent_id = $1 AND status <> 'revoked'",
	.nargs = 3,
	.argtypes = {TEXTOID, TEXTOID, TIMESTAMPTZOID},
};

/* ---- reading parts from the tables ---- */

/* policies: by the search that has found the limit's */
static void
read_limit(Flat *flat, uint32 at, const FoundRow *row, const List *policies)
{
	const FoundRow *policy = list_nth(policies, row->search);
	PartLimit  *limit = FLAT_AT(flat, PartLimit, at);

	limit->scope = scope_named(found_text(policy, POLICY_SCOPE));
	limit->each = DatumGetBool(policy->values[POLICY_EACH]);
	limit->action = action_named(found_text(policy, POLICY_ACTION));
	limit->measure = measure_named(found_text(row, LIMIT_MEASURE));
	limit->period = period_named(found_text(row, LIMIT_PERIOD));
	limit->amount = DatumGetInt64(row->values[LIMIT_AMOUNT]);
	flat_string(flat, FLAT_MEMBER(PartLimit, policy_id, at), found_text(row, LIMIT_POLICY_ID));
}

static void
read_baseline(Flat *flat, uint32 at, const FoundRow *row, const List *nothing)
{
	PartBaseline *baseline = FLAT_AT(flat, PartBaseline, at);

	baseline->measure = measure_named(found_text(row, BASELINE_MEASURE));
	baseline->period = period_named(found_text(row, BASELINE_PERIOD));
	baseline->usage = DatumGetInt64(row->values[BASELINE_USAGE]);
	baseline->start = DatumGetTimestampTz(row->values[BASELINE_START]);
	flat_string(flat, FLAT_MEMBER(PartBaseline, policy_id, at), found_text(row, BASELINE_POLICY_ID));
}

/* An array of what rows hold, where there are any. */
static void
read_array(Flat *flat, uint32 pointer, Size size, const List *rows, const List *others,
		   void (*read) (Flat *flat, uint32 at, const FoundRow *row, const List *others))
{
	ListCell   *cell;
	uint32		at;

	if (rows == NIL)
		return;
	at = flat_array(flat, pointer, size * list_length(rows));
	foreach(cell, rows)
	{
		read(flat, at, lfirst(cell), others);
		at += size;
	}
}

/* The policies that name a subject; of all: those that name nobody. */
static List *
policies_of(ScopeKind scope, const char *id)
{
	FindKeys	searches[NUM_SCOPES];
	int			nsearches = 0;
	List	   *policies = NIL;
	ListCell   *cell;

	for (int i = 0; i < NUM_SCOPES; i++)
	{
		if (scope != SCOPE_ALL && i != (int) scope)
			continue;
		searches[nsearches].values[0] = scopes[i].name;
		searches[nsearches++].values[1] = id;
	}
	foreach(cell, find_rows(&find_policies, searches, nsearches))
	{
		const FoundRow *policy = lfirst(cell);

		if (DatumGetBool(policy->values[POLICY_ENABLED]))
			policies = lappend(policies, lfirst(cell));
	}
	return policies;
}

static List *
limits_of(const List *policies)
{
	int			npolicies = list_length(policies);
	FindKeys   *searches;

	if (npolicies == 0)
		return NIL;
	searches = palloc(sizeof(FindKeys) * npolicies);
	for (int i = 0; i < npolicies; i++)
		searches[i].values[0] = found_text(list_nth(policies, i), POLICY_ID);
	return find_rows(&find_limits, searches, npolicies);
}

/*
 * What is known of a subject, into a part that is there already.  What was
 * forgiven others who have its id does no harm: their policies are not here.
 */
static void
read_part(Flat *flat, ScopeKind scope, const char *id)
{
	FindKeys	subject = {{id}};
	List	   *policies = policies_of(scope, id);
	List	   *limits = limits_of(policies);
	List	   *baselines = find_rows(&find_baselines, &subject, 1);

	flat_string(flat, FLAT_MEMBER(Part, id, 0), id);
	read_array(flat, FLAT_MEMBER(Part, limits, 0), sizeof(PartLimit), limits, policies, read_limit);
	read_array(flat, FLAT_MEMBER(Part, baselines, 0), sizeof(PartBaseline), baselines, NIL, read_baseline);
	FLAT_AT(flat, Part, 0)->nlimits = list_length(limits);
	FLAT_AT(flat, Part, 0)->nbaselines = list_length(baselines);
}

static void
read_actions(Flat *flat, uint32 at, const FoundRow *row)
{
	Datum	   *elements;
	bool	   *nulls;
	int			count;
	uint32		array;

	deconstruct_array(DatumGetArrayTypeP(row->values[PERMISSION_ACTIONS]), TEXTOID, -1, false, TYPALIGN_INT,
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
read_permission(Flat *flat, uint32 at, const FoundRow *row, const List *nothing)
{
	FLAT_AT(flat, Permission, at)->permission_id = DatumGetInt64(row->values[PERMISSION_ID]);
	flat_string(flat, FLAT_MEMBER(Permission, resource, at), found_text(row, PERMISSION_RESOURCE));
	read_actions(flat, at, row);
	constraint_compile(flat, FLAT_MEMBER(Permission, constraints, at),
					   DatumGetJsonbP(row->values[PERMISSION_CONSTRAINTS]));
}

static int
compare_permissions(const ListCell *a, const ListCell *b)
{
	int64		first = DatumGetInt64(((FoundRow *) lfirst(a))->values[PERMISSION_ID]);
	int64		second = DatumGetInt64(((FoundRow *) lfirst(b))->values[PERMISSION_ID]);

	return first < second ? -1 : first > second;
}

static void
read_permissions(Flat *flat, const char *agent_id)
{
	FindKeys	agent = {{agent_id}};
	List	   *permissions = find_rows(&find_permissions, &agent, 1);

	list_sort(permissions, compare_permissions);
	read_array(flat, FLAT_MEMBER(AgentPart, permissions, 0), sizeof(Permission), permissions, NIL, read_permission);
	FLAT_AT(flat, AgentPart, 0)->npermissions = list_length(permissions);
}

/* What is known of an agent; false where there is none of that id. */
static bool
read_agent(Flat *flat, const char *agent_id)
{
	FindKeys	agent_key = {{agent_id}};
	List	   *agents = find_rows(&find_agent, &agent_key, 1);
	const FoundRow *row;
	Agent	   *agent;

	if (agents == NIL)
		return false;
	row = linitial(agents);
	flat_reserve(flat, sizeof(AgentPart));
	agent = &FLAT_AT(flat, AgentPart, 0)->agent;
	agent->revoked = same_text(found_text(row, AGENT_STATUS), "revoked");
	agent->expires_at = DatumGetTimestampTz(row->values[AGENT_EXPIRES_AT]);
	agent->expires = !row->isnull[AGENT_EXPIRES_AT];
	flat_string(flat, FLAT_MEMBER(AgentPart, agent.agent_id, 0), agent_id);
	flat_string(flat, FLAT_MEMBER(AgentPart, agent.user_id, 0), found_text(row, AGENT_USER_ID));
	flat_string(flat, FLAT_MEMBER(AgentPart, agent.tenant_id, 0), found_text(row, AGENT_TENANT_ID));
	flat_string(flat, FLAT_MEMBER(AgentPart, agent.status_reason, 0), found_text(row, AGENT_STATUS_REASON));
	read_permissions(flat, agent_id);
	read_part(flat, SCOPE_AGENT, agent_id);
	return true;
}

/* ---- the parts of a call, from the cache or the tables ---- */

/* By ScopeKind. */
typedef struct Lookup
{
	bool		limits_only;	/* of the agent's part */
	bool		any_read;		/* not all was in the cache */
	bool		wanted[NUM_SCOPES];
	CacheKey	keys[NUM_SCOPES];
	uint64		stamps[NUM_SCOPES];
	Part	   *parts[NUM_SCOPES];	/* NULL for none */
	CacheRoom	room;
} Lookup;

/* Whether this transaction may use the cache, and fill it. */
static bool
may_cache(void)
{
	return cache_is_there() && !change_noted() && !RecoveryInProgress();
}

static void
want_part(Lookup *lookup, ScopeKind scope, const char *id)
{
	CacheKey   *key = &lookup->keys[scope];

	lookup->wanted[scope] = true;
	key->hash = subject_hash(scope, id);
	key->ledger = ledger_oid();
	key->scope = scope;
	key->id = id;
}

static void
unwant_part(Lookup *lookup, ScopeKind scope)
{
	lookup->wanted[scope] = false;
	lookup->parts[scope] = NULL;
}

/* Whose parts it takes besides the agent's, as that says. */
static void
want_others(Lookup *lookup)
{
	const Agent *agent = &((AgentPart *) lookup->parts[SCOPE_AGENT])->agent;

	want_part(lookup, SCOPE_ALL, NULL);
	want_part(lookup, SCOPE_USER, agent->user_id);
	if (agent->tenant_id != NULL)
		want_part(lookup, SCOPE_TENANT, agent->tenant_id);
	else
		unwant_part(lookup, SCOPE_TENANT);
}

/* Copies parts that are wanted out of the cache, if they are there. */
static void
copy_parts(Lookup *lookup, ScopeKind first)
{
	for (int scope = first; scope < NUM_SCOPES; scope++)
		if (lookup->wanted[scope])
			lookup->parts[scope] = cache_read(&lookup->keys[scope], &lookup->room, &lookup->stamps[scope]);
}

/* Whether a part is there, and as it is now. */
static bool
is_good(const Lookup *lookup, ScopeKind scope)
{
	return lookup->parts[scope] != NULL &&
		lookup->stamps[scope] == change_generation(lookup->keys[scope].hash) &&
		!change_under_way(lookup->stamps[scope]);
}

/* Whether all that are wanted are: all of them at one moment, see change.c. */
static bool
are_good(const Lookup *lookup)
{
	for (int scope = 0; scope < NUM_SCOPES; scope++)
		if (lookup->wanted[scope] && !is_good(lookup, scope))
			return false;
	return true;
}

/*
 * Reads a part in the snapshot of find_begin; of an agent that is not there,
 * nothing.  Returns whether it is one to be cached.
 */
static bool
read_wanted(Lookup *lookup, ScopeKind scope, Flat *flat)
{
	const char *id = lookup->keys[scope].id;
	bool		whole = scope == SCOPE_AGENT && !lookup->limits_only;

	flat_init(flat);
	if (!whole)
	{
		flat_reserve(flat, sizeof(Part));
		read_part(flat, scope, id);
	}
	else if (!read_agent(flat, id))
		return false;
	return whole || scope != SCOPE_AGENT;
}

static void
take_part(Lookup *lookup, ScopeKind scope, Flat *flat)
{
	lookup->parts[scope] = flat->bytes.len == 0 ? NULL :
		flat_resolve(flat->bytes.data, (uint32 *) flat->pointers.data, flat_npointers(flat));
}

/*
 * Reads those parts that are not good, and caches them, unless somebody is just
 * changing them.  Their generations are from before the snapshot.
 */
static void
fill_parts(Lookup *lookup)
{
	bool		lacking[NUM_SCOPES];
	Flat		flat;

	for (int scope = 0; scope < NUM_SCOPES; scope++)
	{
		lacking[scope] = lookup->wanted[scope] && !is_good(lookup, scope);
		if (lacking[scope])
			lookup->stamps[scope] = change_generation(lookup->keys[scope].hash);
	}
	pg_read_barrier();
	find_begin();
	for (int scope = 0; scope < NUM_SCOPES; scope++)
	{
		if (!lacking[scope])
			continue;
		if (read_wanted(lookup, scope, &flat) && !change_under_way(lookup->stamps[scope]))
			cache_write(&lookup->keys[scope], lookup->stamps[scope], &flat);
		take_part(lookup, scope, &flat);
	}
	find_end();
	lookup->any_read = true;
}

/* Has what is wanted there, as it was at one moment.  Returns false where it was changed meanwhile. */
static bool
complete(Lookup *lookup)
{
	if (are_good(lookup))
		return true;
	fill_parts(lookup);
	return are_good(lookup);
}

/* The agent's part first, which says whose the others are. */
static bool
complete_profile(Lookup *lookup)
{
	const Part *agent;

	copy_parts(lookup, SCOPE_AGENT);
	/* that there is no such agent is an answer, too */
	if (!complete(lookup))
		return lookup->parts[SCOPE_AGENT] == NULL;
	agent = lookup->parts[SCOPE_AGENT];
	want_others(lookup);
	copy_parts(lookup, SCOPE_USER);
	/* if it had to be read again, it may be others' by now */
	return complete(lookup) && lookup->parts[SCOPE_AGENT] == agent;
}

static bool
complete_limits(Lookup *lookup)
{
	copy_parts(lookup, SCOPE_AGENT);
	return complete(lookup);
}

/* Looks all of it up, in the cache what is there.  Returns false where it was changed meanwhile. */
static bool
gather(Lookup *lookup)
{
	bool		gathered;

	lookup->room = cache_room();
	gathered = lookup->limits_only ? complete_limits(lookup) : complete_profile(lookup);
	cache_count(lookup->keys[SCOPE_AGENT].hash, !lookup->any_read);
	return gathered;
}

/* Reads all of it in one snapshot, past the cache. */
static void
read_all(Lookup *lookup)
{
	Flat		flat;

	find_begin();
	for (int scope = 0; scope < NUM_SCOPES; scope++)
	{
		if (!lookup->wanted[scope])
			continue;
		(void) read_wanted(lookup, scope, &flat);
		take_part(lookup, scope, &flat);
		if (scope != SCOPE_AGENT || lookup->limits_only)
			continue;
		if (lookup->parts[SCOPE_AGENT] == NULL)
			break;
		want_others(lookup);
	}
	find_end();
}

/* All that is wanted, as it is at one moment. */
static void
look_up(Lookup *lookup)
{
	if (!(may_cache() && gather(lookup)))
		read_all(lookup);
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

	want_part(&lookup, SCOPE_AGENT, agent_id);
	look_up(&lookup);
	part = (AgentPart *) lookup.parts[SCOPE_AGENT];
	if (part == NULL)
		return NULL;
	profile = palloc(sizeof(Profile));
	profile->agent = part->agent;
	profile->permissions = part->permissions;
	profile->npermissions = part->npermissions;
	profile->limits = join_limits(lookup.parts, &profile->nlimits);
	return profile;
}

/*
 * The limits that bind subjects other than an agent with its present owner: a
 * settlement charges the owner of then.  All agents are among them.
 */
BudgetLimit *
catalog_limits(const SubjectList *subjects, int *count)
{
	Lookup		lookup = {.limits_only = true};

	for (int i = 0; i < subjects->count; i++)
		want_part(&lookup, subjects->subjects[i].scope, subjects->subjects[i].id);
	look_up(&lookup);
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
