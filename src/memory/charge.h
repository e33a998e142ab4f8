/*-------------------------------------------------------------------------
 * charge.h
 *		What a call charges to counters, and its transaction has charged.
 *-------------------------------------------------------------------------
 */
#ifndef CHARGE_H
#define CHARGE_H

#include "kavach.h"

#include "utils/builtins.h"

#include "memory/counter.h"
#include "memory/rate.h"

typedef struct OwnCharge OwnCharge;

/* A subject of a call, and its windows. */
typedef struct ChargedSubject
{
	CounterKey	key;
	WindowPlace earlier[PERIOD_TOTAL];	/* of refund_ts, ended; entry NULL:
										 * not loaded */
	bool		refunds_earlier[NUM_PERIODS];
	OwnCharge  *own[NUM_PERIODS];	/* this nest level's, of its windows */
	OwnCharge  *own_earlier[PERIOD_TOTAL];
} ChargedSubject;

/* A permission with a rate per hour, of a call. */
typedef struct ChargedRate
{
	int64		permission_id;
	char		id[MAXINT8LEN + 1]; /* the same as text */
	CounterKey	key;
	uint32		hash;
	CounterEntry *entry;
	OwnCharge  *own;
	bool		outside;		/* counted by the ledger (rate.c): */
	RateCalls	calls;
	uint64		commits;		/* of the ring, before that */
} ChargedRate;

/* All that a call charges: its subjects in the windows of ts, and its rates. */
typedef struct CounterSet
{
	TimestampTz ts;
	TimestampTz starts[NUM_PERIODS];	/* of the windows of ts */
	TimestampTz refund_ts;		/* whose windows a refund counts in */
	SubjectList list;
	uint32		hashes[MAX_SUBJECTS];
	WindowPlace places[MAX_SUBJECTS][NUM_PERIODS];	/* the windows of ts */
	ChargedSubject subjects[MAX_SUBJECTS];
	ChargedRate *rates;
	int			nrates;
	uint64		partitions;		/* a bit for each that is locked */
	int			nfresh;			/* pins that this call has taken */
} CounterSet;

extern void charge_open(CounterSet *set, const SubjectList *list, TimestampTz ts, TimestampTz refund_ts,
						const int64 *rated, int nrated);
extern Usage charge_usage(const CounterSet *set, int subject, PeriodKind period);
extern void charge_rate(const CounterSet *set, int rate, RateCalls calls);
extern bool charge_add(CounterSet *set, const Amounts amounts, int rate);
extern void charge_close(CounterSet *set);
extern void charge_cancel(CounterSet *set);
extern void charge_refuse_overflow(void);
extern Usage charge_usage_of(WindowPlace place, bool own);
extern bool charge_is_any(void);
extern void charge_end_transaction(bool commit);
extern void charge_end_subtransaction(bool commit, int level);

#endif							/* CHARGE_H */
