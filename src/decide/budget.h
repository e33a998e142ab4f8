/*-------------------------------------------------------------------------
 * budget.h
 *		Policies and usage to a decision.
 *-------------------------------------------------------------------------
 */
#ifndef BUDGET_H
#define BUDGET_H

#include "kavach.h"

#include "memory/catalog.h"
#include "memory/charge.h"

/* The limits that bind a subject at a time, and how they stand. */
typedef struct Budget
{
	SubjectList subjects;
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
						   const SubjectList *subjects, TimestampTz ts);
extern void budget_peek(Budget *budget);
extern void budget_read(Budget *budget, const CounterSet *counters);
extern BudgetVerdict budget_check(Budget *budget, OptionalInt64 cost, OptionalInt64 min_tokens);
extern void budget_charge(Budget *budget, const Amounts amounts);
extern BudgetLimit *budget_used_up(Budget *budget);
extern OptionalInt64 budget_remaining(Budget *budget, MeasureKind measure);
extern char *budget_reason(const Budget *budget, const BudgetVerdict *verdict,
						   OptionalInt64 cost, OptionalInt64 min_tokens, bool advice);
extern const char *refusal_result(PolicyAction action);
extern SubjectList budget_subjects(const char *agent_id, const char *user_id, const char *tenant_id);

#endif							/* BUDGET_H */
