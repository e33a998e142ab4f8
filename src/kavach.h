/*-------------------------------------------------------------------------
 * kavach.h
 *		What the files of kavach share: the vocabulary of the model, and for
 *		each file what the others may call.  kavach.c has the map.
 *
 * Strings in these structs are NUL-terminated and live in the memory context
 * of the call; NULL stands for SQL NULL.
 *-------------------------------------------------------------------------
 */
#ifndef KAVACH_H
#define KAVACH_H

#include "postgres.h"

#include "access/tupdesc.h"
#include "fmgr.h"
#include "storage/lockdefs.h"
#include "utils/array.h"
#include "utils/inet.h"
#include "utils/jsonb.h"
#include "utils/timestamp.h"
#include "utils/uuid.h"

#define MAX_ID_BYTES		255
#define MAX_RESOURCE_BYTES	2048

/* A call costs at most so many tokens, and a total may reach so many. */
#define MAX_TOKENS			INT64CONST(1000000000000000)
#define MAX_TOTAL			INT64CONST(9000000000000000000)

/* A number that the caller, or the ledger, may have left out. */
typedef struct OptionalInt64
{
	bool		given;
	int64		value;
} OptionalInt64;

/* Whose usage is counted; narrowest first.  Described in scopes[]. */
typedef enum ScopeKind
{
	SCOPE_AGENT,
	SCOPE_USER,
	SCOPE_TENANT,
	SCOPE_ALL,
	SCOPE_PERMISSION			/* for its rate per hour; no budget binds it */
} ScopeKind;

#define NUM_SCOPES			(SCOPE_ALL + 1) /* that budgets bind */
#define NUM_COUNTED_SCOPES	(SCOPE_PERMISSION + 1)

/* In which window it is counted; shortest first.  Described in periods[]. */
typedef enum PeriodKind
{
	PERIOD_HOUR,
	PERIOD_DAY,
	PERIOD_MONTH,
	PERIOD_TOTAL,
	PERIOD_RATE					/* five minutes, of a rate per hour */
} PeriodKind;

#define NUM_PERIODS			(PERIOD_TOTAL + 1)	/* that limits have */
#define PERIOD_BIT(period)	(1 << (period))
#define NUM_COUNTED_PERIODS (PERIOD_RATE + 1)

typedef enum MeasureKind
{
	MEASURE_TOKENS,
	MEASURE_CALLS
} MeasureKind;

#define NUM_MEASURES	(MEASURE_CALLS + 1)

/* What a policy does when its limit would be passed; mildest first. */
typedef enum PolicyAction
{
	ACTION_WARN,
	ACTION_THROTTLE,
	ACTION_BLOCK,
	ACTION_REVOKE
} PolicyAction;

#define NUM_ACTIONS		(ACTION_REVOKE + 1)

/* The ids that a call charges, by ScopeKind; NULL where there is none. */
typedef struct Subject
{
	const char *ids[NUM_SCOPES];
} Subject;

typedef struct LedgerRow LedgerRow;

/* ---- clock.c: the time, UTC windows ---- */

/* 1970-01-01, as ids hold milliseconds since; 10000-01-01 */
#define CLOCK_START	((TimestampTz) (UNIX_EPOCH_JDATE - POSTGRES_EPOCH_JDATE) * USECS_PER_DAY)
#define CLOCK_END	((TimestampTz) (5373485 - POSTGRES_EPOCH_JDATE) * USECS_PER_DAY)

typedef struct PeriodInfo
{
	const char *name;			/* in kavach.budget_limit */
	const char *phrase;			/* in a reason: "4900 used this month" */
} PeriodInfo;

extern const PeriodInfo periods[NUM_COUNTED_PERIODS];
extern PeriodKind period_named(const char *name);

extern void clock_define_settings(void);
extern TimestampTz clock_now(void);
extern TimestampTz period_start(PeriodKind period, TimestampTz ts);
extern TimestampTz period_end(PeriodKind period, TimestampTz ts);
extern char *format_utc(TimestampTz ts);

/* ---- query.c: SQL with the owner's rights ---- */

#define MAX_QUERY_ARGS	24

/* A statement, prepared at first use and kept for the life of the backend. */
typedef struct Statement
{
	const char *sql;
	int			nargs;
	Oid			argtypes[MAX_QUERY_ARGS];
	void	   *plan;			/* SPIPlanPtr; NULL until prepared */
} Statement;

/* What query_begin changed, for query_end to put back. */
typedef struct OwnerRights
{
	Oid			user;
	int			sec_context;
	int			guc_level;
} OwnerRights;

extern Oid	find_ledger(void);
extern Oid	ledger_oid(void);
extern void query_begin(OwnerRights *saved);
extern void query_end(OwnerRights *saved);
extern uint64 query_select(Statement *statement, Datum *values, const char *nulls);
extern uint64 query_execute(Statement *statement, Datum *values, const char *nulls);
extern void query_forget(Statement *statement);
extern void query_avoid_scans(void);
extern void query_ignore_own(void);
extern void query_utility(const char *sql);
extern char *query_text(uint64 row, int column);
extern OptionalInt64 query_int64(uint64 row, int column);
extern Datum query_datum(uint64 row, int column, bool *isnull);

/* ---- argument.c: what callers hand in ---- */

/*
 * A function of C that SQL declares, with how many arguments, and columns of
 * its answer (0 for a value that is no row).  SQL and library may be of
 * different versions; then it fails before it looks at anything.  Its body is
 * name_checked.
 */
#define ENTRY_POINT(name, nargs, ncolumns) \
	PG_FUNCTION_INFO_V1(name); \
	static Datum name##_checked(PG_FUNCTION_ARGS); \
	Datum \
	name(PG_FUNCTION_ARGS) \
	{ \
		check_declaration(fcinfo, nargs, ncolumns); \
		return name##_checked(fcinfo); \
	} \
	extern Datum name(PG_FUNCTION_ARGS)

extern void check_declaration(FunctionCallInfo fcinfo, int nargs, int ncolumns);
extern void check_id(const char *value, const char *name);
extern void check_tokens(int64 tokens, const char *name);
extern char *required_id_arg(FunctionCallInfo fcinfo, int argno, const char *name);
extern char *optional_id_arg(FunctionCallInfo fcinfo, int argno, const char *name);
extern char *required_text_arg(FunctionCallInfo fcinfo, int argno, const char *name, int max_bytes);
extern OptionalInt64 count_arg(FunctionCallInfo fcinfo, int argno, const char *name);
extern int64 required_count_arg(FunctionCallInfo fcinfo, int argno, const char *name);
extern bool required_bool_arg(FunctionCallInfo fcinfo, int argno, const char *name);
extern Jsonb *object_arg(FunctionCallInfo fcinfo, int argno, const char *name);
extern TupleDesc answer_desc(FunctionCallInfo fcinfo);
extern Datum text_or_null(const char *value, bool *isnull);
extern Datum number_or_null(OptionalInt64 number, bool *isnull);
extern bool same_text(const char *a, const char *b);

/* ---- words.c: how texts and numbers read in a reason ---- */

#define MAX_REASON_BYTES	2048

extern const char *clip_text(const char *text, int max_bytes);
extern char *quote_text(const char *text);
extern const char *plural(int64 number, const char *one, const char *many);

/* ---- catalog.c: agents, permissions and policies, looked up ---- */

typedef struct Agent
{
	char	   *agent_id;
	char	   *user_id;
	char	   *tenant_id;
	bool		revoked;
	char	   *status_reason;
	bool		expires;
	TimestampTz expires_at;
} Agent;

typedef struct Permission
{
	int64		permission_id;
	char	   *resource;
	ArrayType  *actions;
	Jsonb	   *constraints;
} Permission;

/* A limit that binds a subject; how it stands is filled in by budget.c. */
typedef struct BudgetLimit
{
	char	   *policy_id;
	ScopeKind	scope;
	bool		each;
	PolicyAction action;
	MeasureKind measure;
	PeriodKind	period;
	int64		amount;
	bool		has_baseline;
	TimestampTz baseline_start;
	int64		baseline;

	bool		baseline_applies;	/* to the window of the call */
	int64		usage;			/* in that window, own charges too */
	int64		used;			/* what of it counts against the limit */
	int64		pending;		/* of other transactions */
	TimestampTz window_end;		/* DT_NOEND for total */
} BudgetLimit;

/* All that a call needs to know of an agent. */
typedef struct Profile
{
	Agent		agent;
	Permission *permissions;	/* in permission_id order */
	int			npermissions;
	BudgetLimit *limits;
	int			nlimits;
} Profile;

extern Size catalog_shmem_size(void);
extern void catalog_shmem_startup(void);
extern const Profile *catalog_profile(const char *agent_id);
extern void catalog_define_settings(void);
extern bool catalog_has_changed(void);
extern void catalog_end_transaction(bool commit);
extern BudgetLimit *catalog_limits(const Subject *subject, int *count);
extern void catalog_revoke_agent(const char *agent_id, const char *reason, TimestampTz ts);

/* ---- counter.c: usage in shared memory ---- */

typedef struct ScopeInfo
{
	const char *name;			/* in kavach.budget_policy and kavach.counters */
} ScopeInfo;

extern const ScopeInfo scopes[NUM_COUNTED_SCOPES];
extern ScopeKind scope_named(const char *name);

/* Usage of one subject in one window, by measure, as a transaction sees it. */
typedef struct Usage
{
	int64		used[NUM_MEASURES]; /* committed, and its own */
	int64		pending[NUM_MEASURES];	/* others' open increases */
} Usage;

/*
 * The rate per hour of a permission is counted in windows of five minutes: the
 * current one, the twelve before, and the twelve after, which hold something
 * only when the clock has stepped back.
 */
#define RATE_WINDOW		(5 * USECS_PER_MINUTE)
#define RATE_WINDOWS	25
#define CURRENT_RATE_WINDOW 12

typedef struct Counter Counter;

/* The windows of a permission with a rate per hour, in a CounterSet. */
typedef struct CounterRate
{
	int64		permission_id;
	char	   *id;				/* the same as text */
	int			first;			/* the oldest of RATE_WINDOWS counters */
} CounterRate;

/*
 * All the counters of a call: those of its subjects in the windows of ts, those
 * in earlier windows, where a refund goes there, then those of its rates.
 */
typedef struct CounterSet
{
	Oid			ledger;
	Subject		subject;
	TimestampTz ts;
	TimestampTz refund_ts;		/* whose windows a refund counts in */
	Counter    *counters;
	int			count;
	int			first[NUM_SCOPES];	/* of a scope's counters at ts, or -1 */
	int			nsubject;		/* all but those of rates */
	CounterRate *rates;
	int			nrates;
	uint64		partitions;		/* a bit for each that is locked */
} CounterSet;

extern void counter_define_settings(void);
extern Size counter_shmem_size(void);
extern void counter_request_locks(void);
extern void counter_shmem_startup(void);
extern void counter_require(void);
extern void counter_open(CounterSet *set, const Subject *subject, TimestampTz ts, TimestampTz refund_ts,
						 const int64 *rated, int nrated);
extern Usage counter_usage(const CounterSet *set, ScopeKind scope, PeriodKind period);
extern void counter_rate(const CounterSet *set, int index, int64 calls[RATE_WINDOWS]);
extern bool counter_charge(CounterSet *set, int64 tokens, int64 calls, int rate);
extern void counter_refuse_overflow(void);
extern void counter_close(CounterSet *set);
extern void counter_warn_if_small(void);
extern void counter_peek(const Subject *subject, TimestampTz ts, const int wanted[NUM_SCOPES],
						 Usage usage[NUM_SCOPES][NUM_PERIODS]);
extern void counter_peek_rate(const char *agent_id, int64 permission_id, TimestampTz ts,
							  int64 calls[RATE_WINDOWS]);
extern void counter_end_transaction(bool commit);
extern void counter_end_subtransaction(bool commit, int level);

/* ---- tally.c: usage, summed up from the ledger ---- */

extern void tally_subjects(const Subject *subject, TimestampTz ts, const int longest[NUM_SCOPES],
						   bool own, Usage usage[NUM_SCOPES][NUM_PERIODS]);
extern void tally_rate(const char *agent_id, int64 permission_id, TimestampTz ts,
					   Usage usage[RATE_WINDOWS]);

/* ---- transaction.c: what the end of a transaction does ---- */

extern void transaction_define_settings(void);
extern void transaction_wrote_ledger(const LedgerRow *row);

/* ---- ledger.c: how rows are written and found ---- */

typedef enum LedgerKind
{
	LEDGER_AUTHORIZE,
	LEDGER_USAGE,
	LEDGER_ADJUSTMENT
} LedgerKind;

struct LedgerRow
{
	pg_uuid_t	id;				/* made by ledger_append */
	TimestampTz ts;
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

	bool		own;			/* found by id: written by this transaction */
};

extern void ledger_define_settings(void);
extern void ledger_begin(void);
extern void ledger_append(LedgerRow *row);
extern pg_uuid_t ledger_first_id(TimestampTz ts);
extern TimestampTz ledger_charged_at(const LedgerRow *row);
extern LedgerRow *ledger_find(const pg_uuid_t *id);
extern LedgerRow *ledger_find_request(LedgerKind kind, const char *agent_id, const char *request_id,
									  TimestampTz ts);
extern LedgerRow *ledger_find_settlement(const pg_uuid_t *id);
extern void ledger_lock_request(const char *agent_id, const char *request_id, TimestampTz ts);
extern void ledger_lock_authorization(const pg_uuid_t *id, TimestampTz ts);

/* ---- partition.c: the ledger's months, and the way straight into them ---- */

typedef struct LedgerColumn
{
	const char *name;
	Oid			type;
} LedgerColumn;

#define NUM_LEDGER_COLUMNS	23	/* that are written; the others are NULL */

extern const LedgerColumn ledger_columns[NUM_LEDGER_COLUMNS];

/* The values of a row, one for each of ledger_columns. */
typedef struct RowValues
{
	int			count;
	Datum		values[NUM_LEDGER_COLUMNS];
	bool		isnull[NUM_LEDGER_COLUMNS];
} RowValues;

extern Size partition_shmem_size(void);
extern void partition_shmem_startup(void);
extern void partition_refresh(Oid ledger);
extern bool partition_is_month(Oid relid);
extern bool partition_is_heap(Oid ledger, TimestampTz ts);
extern bool partition_has_attached(void);
extern void partition_end_transaction(bool commit);
extern void partition_make_if_free(Oid ledger, TimestampTz ts);
extern void partition_announce(Oid ledger);
extern bool partition_insert(Oid ledger, TimestampTz ts, const RowValues *row);

/* ---- worker.c: the background worker that makes partitions ---- */

extern bool worker_make_partitions(Oid ledger, TimestampTz ts);

/* ---- guard.c: what nobody may change or remove ---- */

extern void guard_install(void);
extern bool guard_is_key_of_calls(const char *schema, const char *name);

/* ---- lock.c: heavyweight locks of our own ---- */

typedef enum LockClass
{
	LOCK_REQUEST,
	LOCK_AUTHORIZATION,
	LOCK_REVOKE,
	LOCK_PARTITION,
	LOCK_MONTH,					/* of rows whose own locks are not kept */
	LOCK_LOAD					/* + ScopeKind; comes last */
} LockClass;

extern void lock_relation(Oid relid, LOCKMODE mode);
extern void unlock_relation(Oid relid, LOCKMODE mode);
extern void lock_acquire(int class, const char *id);
extern bool lock_try(int class, const char *id);
extern void lock_release(int class, const char *id);
extern bool lock_hold(int class, const char *id);
extern void lock_mark(int class, const char *id);
extern void lock_wait(int class, const char *id);
extern void lock_begin_call(void);
extern void lock_end_call(void);
extern void lock_end_transaction(void);

/* ---- permission.c: matching and constraints ---- */

/* A permission that admits the call but for its rate. */
typedef struct Candidate
{
	int64		permission_id;
	int64		max_calls_per_hour; /* 0 for no limit */
	int			rate;			/* index of its rate in the CounterSet, or -1 */

	int64		left;			/* of its rate; filled in by authorize.c */
	TimestampTz room_at;		/* DT_NOBEGIN: it has room now */
} Candidate;

/* What of a call permissions look at. */
typedef struct PermissionRequest
{
	const char *action;
	const char *resource;
	Jsonb	   *arguments;
	inet	   *ip;
	TimestampTz ts;
} PermissionRequest;

/* The permissions that match, or why there is none. */
typedef struct PermissionVerdict
{
	Candidate  *candidates;		/* in permission_id order */
	int			ncandidates;
	const char *code;			/* when there is none */
	char	   *reason;
	TimestampTz opens_at;		/* of the first by time alone, or DT_NOEND */
} PermissionVerdict;

extern PermissionVerdict permission_check(const Profile *profile, const PermissionRequest *request);

/* ---- budget.c: policies to a decision ---- */

/* The limits that bind a subject at a time, and how they stand. */
typedef struct Budget
{
	Subject		subject;
	TimestampTz ts;
	BudgetLimit *limits;
	int			nlimits;
} Budget;

/* One of refusal and pending names the limit that refuses, or the call is admitted. */
typedef struct BudgetVerdict
{
	bool		admitted;
	BudgetLimit *refusal;		/* would be passed */
	BudgetLimit *pending;		/* would be, with others' pending ones */
	BudgetLimit *warning;		/* when admitted: the one that warns, or NULL */
	OptionalInt64 granted;
	TimestampTz retry_at;		/* of a refusal; DT_NOEND for none */
} BudgetVerdict;

extern void budget_prepare(Budget *budget, const BudgetLimit *limits, int nlimits,
						   const Subject *subject, TimestampTz ts);
extern void budget_peek(Budget *budget);
extern void budget_read(Budget *budget, const CounterSet *counters);
extern BudgetVerdict budget_check(Budget *budget, OptionalInt64 cost, OptionalInt64 min_tokens);
extern void budget_charge(Budget *budget, int64 tokens, int64 calls);
extern BudgetLimit *budget_used_up(Budget *budget);
extern OptionalInt64 budget_remaining(Budget *budget, MeasureKind measure);
extern char *budget_reason(const Budget *budget, const BudgetVerdict *verdict,
						   OptionalInt64 cost, OptionalInt64 min_tokens, bool advice);
extern const char *const action_names[NUM_ACTIONS];
extern const char *refusal_result(PolicyAction action);
extern Subject agent_subject(const Agent *agent);

#endif							/* KAVACH_H */
