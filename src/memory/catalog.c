/*-------------------------------------------------------------------------
 * catalog.c
 *		Agents, permissions and policies, looked up and cached.
 *
 * A profile is all that a call needs to know of an agent: itself, its
 * permissions, the limits that bind it.  One query fetches it, in the latest
 * snapshot, and each backend keeps it while its generations stand.
 *
 * Generations are counters in shared memory: one for a slot of agents (by
 * hash of database and agent), one for all policies of a database's slot.
 * Triggers on the tables (ENABLE ALWAYS; BEFORE each row, so that a statement's
 * own changes are noted when they can be seen, and as logical replication fires
 * no others; and on TRUNCATE) note what a transaction changes, and its commit
 * advances those generations, when it is visible and before the client is
 * told.  So a change that has committed is obeyed by the next call in every
 * session, also in a transaction already open.
 *
 * A profile is valid while the generations that were read before its query's
 * snapshot stand.  A transaction that has changed any of these tables itself
 * reads past the cache and puts nothing in until it ends, since it may yet
 * roll back.  Nothing is cached on a standby, whose changes fire no trigger,
 * nor where kavach is not preloaded.
 *
 * What names an agent goes with it (kavach_forget_agent), in the latest snapshot:
 * a transaction that is REPEATABLE READ must not leave a permission that was
 * granted meanwhile to the next agent of that id.  So are grants that are there
 * already found, and those that are not to stay taken away.
 *-------------------------------------------------------------------------
 */
#include "memory/catalog.h"

#include "access/htup_details.h"
#include "access/xlog.h"
#include "catalog/pg_type.h"
#include "commands/trigger.h"
#include "common/hashfn.h"
#include "executor/spi.h"
#include "miscadmin.h"
#include "port/atomics.h"
#include "port/pg_bitutils.h"
#include "storage/shmem.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/guc.h"
#include "utils/hsearch.h"
#include "utils/memutils.h"
#include "utils/rel.h"

#include "server/argument.h"
#include "server/clock.h"
#include "server/lock.h"
#include "server/query.h"

#define AGENT_SLOTS			16384
#define POLICY_SLOTS		64

typedef struct Generations
{
	pg_atomic_uint64 agents[AGENT_SLOTS];
	pg_atomic_uint64 policies[POLICY_SLOTS];
} Generations;

typedef struct CachedProfile
{
	char		agent_id[MAX_ID_BYTES + 1]; /* hash key */
	uint64		agent_generation;
	uint64		policy_generation;
	Profile    *profile;		/* in a memory context of its own */
	MemoryContext context;
} CachedProfile;

static int	max_cached_agents = 131072;

static Generations *generations = NULL;

static HTAB *profiles = NULL;
static Oid	profiles_ledger = InvalidOid;	/* which the profiles belong to */

/* What this transaction has changed. */
static bool changed_any = false;
static bool changed_policies = false;
static uint64 changed_agents[AGENT_SLOTS / 64];

ENTRY_POINT(kavach_note_change, 0, 0);
ENTRY_POINT(kavach_forget_agent, 1, 0);
ENTRY_POINT(kavach_permissions_of, 1, 0);
ENTRY_POINT(kavach_find_permission, 4, 0);
ENTRY_POINT(kavach_keep_permissions, 2, 0);

/*
 * The parts of a profile, a row each: 1 the agent, 2 a permission, 3 a limit.
 * Policies are found by scope and subject, an index each.
 */
#define LIMITS_OF(subjects) \
	"SELECT 3 AS part, p.policy_id, p.scope, p.action, l.measure, l.period, p.each AS flag," \
	"       l.amount AS number, b.usage, b.period_start AS ts, NULL::text[], NULL::jsonb" \
	"  FROM " subjects \
	" CROSS JOIN LATERAL (" \
	"    SELECT * FROM kavach.budget_policy n WHERE n.scope = s.scope AND n.subject = s.subject" \
	"     UNION ALL" \
	"    SELECT * FROM kavach.budget_policy n WHERE n.scope = s.scope AND n.subject IS NULL" \
	"       AND (s.subject IS NOT NULL OR s.scope = 'all')) p" \
	"  JOIN kavach.budget_limit l ON l.policy_id = p.policy_id" \
	"  LEFT JOIN LATERAL (" \
	"    SELECT n.usage, n.period_start FROM kavach.budget_baseline n" \
	"     WHERE (n.policy_id, n.measure, n.period) = (l.policy_id, l.measure, l.period)" \
	"       AND n.subject = s.subject" \
	"     UNION ALL" \
	"    SELECT n.usage, n.period_start FROM kavach.budget_baseline n" \
	"     WHERE (n.policy_id, n.measure, n.period) = (l.policy_id, l.measure, l.period)" \
	"       AND n.subject IS NULL AND s.subject IS NULL) b ON true" \
	" WHERE p.enabled"

static Statement find_profile = {
	.sql = "WITH a AS MATERIALIZED (SELECT * FROM kavach.agent WHERE agent_id = $1)"
	"SELECT 1 AS part, user_id, tenant_id, status_reason, NULL, NULL, status = 'revoked' AS flag,"
	"       NULL::bigint AS number, NULL::bigint, expires_at AS ts, NULL::text[], NULL::jsonb"
	"  FROM a"
	" UNION ALL "
	"SELECT 2, resource, NULL, NULL, NULL, NULL, NULL,"
	"       permission_id, NULL, NULL, actions, constraints"
	"  FROM kavach.permission WHERE agent_id = $1"
	" UNION ALL "
	LIMITS_OF("a CROSS JOIN LATERAL (VALUES ('agent', a.agent_id), ('user', a.user_id), ('tenant', a.tenant_id), ('all', NULL)) AS s (scope, subject)")
	" ORDER BY part, number",
	.nargs = 1,
	.argtypes = {TEXTOID},
};

static Statement find_limits = {
	.sql = LIMITS_OF("(VALUES ('agent', $1), ('user', $2), ('tenant', $3), ('all', NULL)) AS s (scope, subject)"),
	.nargs = 3,
	.argtypes = {TEXTOID, TEXTOID, TEXTOID},
};

static Statement revoke_agent = {
	.sql = "UPDATE kavach.agent SET status = 'revoked', status_reason = $2, status_changed_at = $3"
	" WHERE agent_id = $1 AND status <> 'revoked'",
	.nargs = 3,
	.argtypes = {TEXTOID, TEXTOID, TIMESTAMPTZOID},
};

void
catalog_define_settings(void)
{
	DefineCustomIntVariable("kavach.max_cached_agents",
							"Sets how many agents a session keeps what it has looked up of.",
							"About 2 kB each, with permissions and limits. When it is reached, the session begins anew.",
							&max_cached_agents,
							131072, 16, INT_MAX / 2,
							PGC_SUSET,
							0,
							NULL, NULL, NULL);
}

/* ---- generations ---- */

Size
catalog_shmem_size(void)
{
	return MAXALIGN(sizeof(Generations));
}

/* Called with AddinShmemInitLock held. */
void
catalog_shmem_startup(void)
{
	bool		found;

	generations = ShmemInitStruct("kavach generations", sizeof(Generations), &found);
	if (found)
		return;
	for (int i = 0; i < AGENT_SLOTS; i++)
		pg_atomic_init_u64(&generations->agents[i], 0);
	for (int i = 0; i < POLICY_SLOTS; i++)
		pg_atomic_init_u64(&generations->policies[i], 0);
}

static int
agent_slot(const char *agent_id)
{
	return hash_combine(hash_bytes((const unsigned char *) agent_id, strlen(agent_id)),
						murmurhash32(MyDatabaseId)) % AGENT_SLOTS;
}

static int
policy_slot(void)
{
	return MyDatabaseId % POLICY_SLOTS;
}

static void
note_agent(HeapTuple tuple, TupleDesc desc)
{
	int			column = SPI_fnumber(desc, "agent_id");
	bool		isnull;
	Datum		agent_id;
	int			slot;

	if (column <= 0 || SPI_gettypeid(desc, column) != TEXTOID)
		ereport(ERROR,
				(errcode(ERRCODE_E_R_I_E_TRIGGER_PROTOCOL_VIOLATED),
				 errmsg("kavach.note_change() must be called for a table with a column agent_id of type text")));
	if (tuple == NULL)
		return;
	agent_id = SPI_getbinval(tuple, desc, column, &isnull);
	if (isnull)
		return;
	slot = agent_slot(TextDatumGetCString(agent_id));
	changed_agents[slot / 64] |= UINT64CONST(1) << (slot % 64);
}

/*
 * Trigger: notes a change of an agent or its permissions (argument 'agent') or
 * of a policy, its limits or baselines (argument 'policy').
 */
static Datum
kavach_note_change_checked(PG_FUNCTION_ARGS)
{
	TriggerData *trigger = (TriggerData *) fcinfo->context;

	if (!CALLED_AS_TRIGGER(fcinfo) || trigger->tg_trigger->tgnargs != 1)
		ereport(ERROR,
				(errcode(ERRCODE_E_R_I_E_TRIGGER_PROTOCOL_VIOLATED),
				 errmsg("kavach.note_change() must be called as a trigger with one argument")));
	changed_any = true;
	if (strcmp(trigger->tg_trigger->tgargs[0], "policy") == 0)
		changed_policies = true;
	else if (TRIGGER_FIRED_BY_TRUNCATE(trigger->tg_event))
		memset(changed_agents, 0xff, sizeof(changed_agents));
	else
	{
		note_agent(trigger->tg_trigtuple, RelationGetDescr(trigger->tg_relation));
		if (TRIGGER_FIRED_BY_UPDATE(trigger->tg_event))
			note_agent(trigger->tg_newtuple, RelationGetDescr(trigger->tg_relation));
	}
	return PointerGetDatum(TRIGGER_FIRED_BY_UPDATE(trigger->tg_event) ?
						   trigger->tg_newtuple : trigger->tg_trigtuple);
}

/* Whether this transaction has changed what calls look up. */
bool
catalog_has_changed(void)
{
	return changed_any;
}

/* At the end of the transaction: nothing here may fail. */
void
catalog_end_transaction(bool commit)
{
	if (!changed_any)
		return;
	if (commit && generations != NULL)
	{
		for (int word = 0; word < AGENT_SLOTS / 64; word++)
			for (uint64 bits = changed_agents[word]; bits != 0; bits &= bits - 1)
				pg_atomic_fetch_add_u64(&generations->agents[word * 64 + pg_rightmost_one_pos64(bits)], 1);
		if (changed_policies)
			pg_atomic_fetch_add_u64(&generations->policies[policy_slot()], 1);
	}
	changed_any = false;
	changed_policies = false;
	memset(changed_agents, 0, sizeof(changed_agents));
}

/* ---- reading a profile ---- */

static void
read_agent(Profile *profile, const char *agent_id, uint64 row)
{
	Agent	   *agent = &profile->agent;
	bool		isnull;

	agent->agent_id = pstrdup(agent_id);
	agent->user_id = query_text(row, 2);
	agent->tenant_id = query_text(row, 3);
	agent->status_reason = query_text(row, 4);
	agent->revoked = DatumGetBool(query_datum(row, 7, &isnull));
	agent->expires_at = DatumGetTimestampTz(query_datum(row, 10, &isnull));
	agent->expires = !isnull;
}

static void
read_permission(Permission *permission, uint64 row)
{
	bool		isnull;

	permission->permission_id = query_int64(row, 8).value;
	permission->resource = query_text(row, 2);
	permission->actions = DatumGetArrayTypeP(query_datum(row, 11, &isnull));
	permission->constraints = DatumGetJsonbP(query_datum(row, 12, &isnull));
}

static void
read_limit(BudgetLimit *limit, uint64 row)
{
	bool		isnull;

	limit->policy_id = query_text(row, 2);
	limit->scope = scope_named(query_text(row, 3));
	limit->action = action_named(query_text(row, 4));
	limit->measure = measure_named(query_text(row, 5));
	limit->period = period_named(query_text(row, 6));
	limit->each = DatumGetBool(query_datum(row, 7, &isnull));
	limit->amount = query_int64(row, 8).value;
	limit->baseline = query_int64(row, 9).value;
	limit->baseline_start = DatumGetTimestampTz(query_datum(row, 10, &isnull));
	limit->has_baseline = !isnull;
}

/* Whether an "each" limit yields to one that names the subject. */
static bool
yields(const BudgetLimit *limit, const BudgetLimit *limits, int count)
{
	if (!limit->each)
		return false;
	for (int i = 0; i < count; i++)
		if (!limits[i].each &&
			limits[i].scope == limit->scope &&
			limits[i].measure == limit->measure &&
			limits[i].period == limit->period &&
			(limits[i].action == ACTION_WARN) == (limit->action == ACTION_WARN))
			return true;
	return false;
}

/* The limits of the rows from "first" on, without those that yield. */
static BudgetLimit *
read_limits(uint64 first, uint64 nrows, int *count)
{
	int			nfound = (int) (nrows - first);
	BudgetLimit *found = palloc0(sizeof(BudgetLimit) * Max(nfound, 1));
	BudgetLimit *kept = palloc(sizeof(BudgetLimit) * Max(nfound, 1));

	for (int i = 0; i < nfound; i++)
		read_limit(&found[i], first + i);
	*count = 0;
	for (int i = 0; i < nfound; i++)
		if (!yields(&found[i], found, nfound))
			kept[(*count)++] = found[i];
	pfree(found);
	return kept;
}

static int
part_of(uint64 row)
{
	bool		isnull;

	return DatumGetInt32(query_datum(row, 1, &isnull));
}

/* Reads the profile of an agent in the current memory context, or NULL. */
static Profile *
read_profile(const char *agent_id)
{
	OwnerRights owner;
	Datum		values[] = {CStringGetTextDatum(agent_id)};
	Profile    *profile = NULL;
	uint64		nrows;

	query_begin(&owner);
	nrows = query_select(&find_profile, values, NULL);
	if (nrows > 0 && part_of(0) == 1)
	{
		uint64		row = 1;

		profile = palloc0(sizeof(Profile));
		read_agent(profile, agent_id, 0);
		profile->permissions = palloc(sizeof(Permission) * nrows);
		for (; row < nrows && part_of(row) == 2; row++)
			read_permission(&profile->permissions[profile->npermissions++], row);
		profile->limits = read_limits(row, nrows, &profile->nlimits);
	}
	query_end(&owner);
	return profile;
}

/* ---- the cache ---- */

static void
make_profiles(Oid ledger)
{
	HASHCTL		info = {
		.keysize = MAX_ID_BYTES + 1,
		.entrysize = sizeof(CachedProfile),
	};

	profiles = hash_create("kavach profiles", 256, &info, HASH_ELEM | HASH_STRINGS);
	profiles_ledger = ledger;
}

/* A call that is under way may still use the profile: it goes with the transaction. */
static void
discard_profile(CachedProfile *cached)
{
	MemoryContextSetParent(cached->context, TopTransactionContext);
	hash_search(profiles, cached->agent_id, HASH_REMOVE, NULL);
}

static void
discard_all_profiles(void)
{
	HASH_SEQ_STATUS scan;
	CachedProfile *cached;

	hash_seq_init(&scan, profiles);
	while ((cached = hash_seq_search(&scan)) != NULL)
		discard_profile(cached);
}

static Profile *
cache_profile(const char *agent_id)
{
	uint64		agent_generation = pg_atomic_read_u64(&generations->agents[agent_slot(agent_id)]);
	uint64		policy_generation = pg_atomic_read_u64(&generations->policies[policy_slot()]);
	MemoryContext context;
	MemoryContext old;
	CachedProfile *cached;
	Profile    *profile;

	pg_read_barrier();			/* the generations, then the snapshot */
	context = AllocSetContextCreate(CurrentMemoryContext, "kavach profile", ALLOCSET_SMALL_SIZES);
	old = MemoryContextSwitchTo(context);
	profile = read_profile(agent_id);
	MemoryContextSwitchTo(old);
	if (profile == NULL)
		return NULL;

	if (hash_get_num_entries(profiles) >= max_cached_agents)
		discard_all_profiles();
	cached = hash_search(profiles, agent_id, HASH_ENTER, NULL);
	MemoryContextSetParent(context, TopMemoryContext);
	cached->agent_generation = agent_generation;
	cached->policy_generation = policy_generation;
	cached->profile = profile;
	cached->context = context;
	return profile;
}

/*
 * All that a call needs to know of an agent; NULL when there is none of that
 * id.  It stays as it is to the end of the call at least.
 */
const Profile *
catalog_profile(const char *agent_id)
{
	Oid			ledger = ledger_oid();
	CachedProfile *cached;

	if (generations == NULL || changed_any || RecoveryInProgress())
		return read_profile(agent_id);
	if (profiles == NULL)
		make_profiles(ledger);
	else if (profiles_ledger != ledger)
	{
		discard_all_profiles();
		profiles_ledger = ledger;
	}

	cached = hash_search(profiles, agent_id, HASH_FIND, NULL);
	if (cached != NULL)
	{
		if (cached->agent_generation == pg_atomic_read_u64(&generations->agents[agent_slot(agent_id)]) &&
			cached->policy_generation == pg_atomic_read_u64(&generations->policies[policy_slot()]))
			return cached->profile;
		discard_profile(cached);
	}
	return cache_profile(agent_id);
}

/*
 * The limits that bind a subject other than an agent with its present owner:
 * a settlement charges the owner of then.
 */
BudgetLimit *
catalog_limits(const SubjectList *subjects, int *count)
{
	OwnerRights owner;
	Datum		values[3];
	char		nulls[3] = {'n', 'n', 'n'};
	BudgetLimit *limits;

	for (int i = 0; i < subjects->count; i++)
	{
		const Subject *subject = &subjects->subjects[i];

		if (subject->scope == SCOPE_ALL)
			continue;
		values[subject->scope] = CStringGetTextDatum(subject->id);
		nulls[subject->scope] = ' ';
	}
	query_begin(&owner);
	limits = read_limits(0, query_select(&find_limits, values, nulls), count);
	query_end(&owner);
	return limits;
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
 * By agent.  Its policies are locked first, as whoever changes one does: or a
 * limit that is being added would outlast its policy.  What depends on a policy
 * goes before it.
 */
static Statement forget_agent[] = {
	{
		.sql = "SELECT FROM kavach.budget_policy WHERE scope = 'agent' AND subject = $1"
		" ORDER BY policy_id FOR UPDATE",
		.nargs = 1,
		.argtypes = {TEXTOID},
	},
	{
		.sql = "DELETE FROM kavach.permission WHERE agent_id = $1",
		.nargs = 1,
		.argtypes = {TEXTOID},
	},
	{
		.sql = "DELETE FROM kavach.budget_baseline b USING kavach.budget_policy p"
		" WHERE p.scope = 'agent' AND b.policy_id = p.policy_id AND b.subject = $1",
		.nargs = 1,
		.argtypes = {TEXTOID},
	},
	{
		.sql = "DELETE FROM kavach.budget_limit l USING kavach.budget_policy p"
		" WHERE p.scope = 'agent' AND p.subject = $1 AND l.policy_id = p.policy_id",
		.nargs = 1,
		.argtypes = {TEXTOID},
	},
	{
		.sql = "DELETE FROM kavach.budget_policy WHERE scope = 'agent' AND subject = $1",
		.nargs = 1,
		.argtypes = {TEXTOID},
	},
};

/* SQL: kavach.forget_agent(agent_id): whatever the id is, of a row that was written by hand, too */
static Datum
kavach_forget_agent_checked(PG_FUNCTION_ARGS)
{
	OwnerRights owner;
	Datum		values[] = {PG_ARGISNULL(0) ? (Datum) 0 : PG_GETARG_DATUM(0)};

	if (PG_ARGISNULL(0))
		PG_RETURN_BOOL(false);
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
