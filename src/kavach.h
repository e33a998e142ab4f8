/*-------------------------------------------------------------------------
 * kavach.h
 *		The vocabulary of the model, which all files of kavach share.
 *
 * What a file offers to others is in the header beside it; kavach.c has the
 * map.  Strings in these structs are NUL-terminated and live in the memory context
 * of the call; NULL stands for SQL NULL.
 *-------------------------------------------------------------------------
 */
#ifndef KAVACH_H
#define KAVACH_H

#include "postgres.h"

#include "fmgr.h"
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

#define NUM_RESULTS		3		/* of a ledger row */

/* Whose usage it is. */
typedef struct Subject
{
	ScopeKind	scope;
	const char *id;				/* NULL for all agents */
} Subject;

#define MAX_SUBJECTS	8

/* Those that a call charges, narrowest first; there may be several of a scope. */
typedef struct SubjectList
{
	int			count;
	Subject		subjects[MAX_SUBJECTS];
} SubjectList;

/* Usage of one subject in one window, by measure, as a transaction sees it. */
typedef struct Usage
{
	int64		used[NUM_MEASURES]; /* committed, and its own */
	int64		pending[NUM_MEASURES];	/* others' open increases */
} Usage;

typedef int64 Amounts[NUM_MEASURES];

/*
 * The rate per hour of a permission is counted in windows of five minutes: the
 * current one, the twelve before, and the twelve after, which hold something
 * only when the clock has stepped back.
 */
#define RATE_WINDOW		(5 * USECS_PER_MINUTE)
#define RATE_WINDOWS	25
#define CURRENT_RATE_WINDOW 12

/* ---- vocabulary.c: what the kinds are called ---- */

typedef struct ScopeInfo
{
	const char *name;			/* in kavach.budget_policy and kavach.counters */
	const char *column;			/* of tables, with its ids; NULL: has none */
	bool		indexed;		/* whether that column finds its rows */
} ScopeInfo;

typedef struct MeasureInfo
{
	const char *name;			/* in kavach.budget_limit */
	const char *argument;		/* in the keys of limits: "max_calls_total" */
} MeasureInfo;

extern const ScopeInfo scopes[NUM_COUNTED_SCOPES];
extern const MeasureInfo measures[NUM_MEASURES];
extern const char *const action_names[NUM_ACTIONS];
extern const char *const result_names[NUM_RESULTS];
extern ScopeKind scope_named(const char *name);
extern MeasureKind measure_named(const char *name);
extern PolicyAction action_named(const char *name);

#endif							/* KAVACH_H */
