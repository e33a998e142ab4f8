/*-------------------------------------------------------------------------
 * catalog.h
 *		Agents, permissions and policies, looked up and cached.
 *-------------------------------------------------------------------------
 */
#ifndef CATALOG_H
#define CATALOG_H

#include "kavach.h"

#include "memory/constraint.h"

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
	char	  **actions;		/* NULL where one of them is */
	int			nactions;
	Constraints *constraints;	/* NULL for none */
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

	int			subject;		/* its index among those of the call */
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

extern const Profile *catalog_profile(const char *agent_id);
extern BudgetLimit *catalog_limits(const SubjectList *subjects, int *count);
extern void catalog_revoke_agent(const char *agent_id, const char *reason, TimestampTz ts);

#endif							/* CATALOG_H */
