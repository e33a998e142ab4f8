/*-------------------------------------------------------------------------
 * takeout.h
 *		Takes a month out of the ledger.
 *-------------------------------------------------------------------------
 */
#ifndef TAKEOUT_H
#define TAKEOUT_H

#include "kavach.h"

#include "nodes/pg_list.h"

/* A month that is to go, and how. */
typedef struct Takeout
{
	Oid			ledger;
	TimestampTz month;			/* its start */
	int			keep_minutes;	/* how long after its end it is kept at least */
	bool		archive;		/* its table stays */
	const char *schema;			/* where that goes; NULL: stays where it is */
	Oid			role;			/* who wants it; InvalidOid: kavach.retention */
} Takeout;

/* How far a month has come. */
typedef enum TakeoutState
{
	TAKEOUT_NONE,				/* neither the ledger nor the record knows the
								 * month */
	TAKEOUT_ATTACHED,			/* a month of the ledger */
	TAKEOUT_RESTORED,			/* the same, but recorded as gone: from a dump
								 * of half-way */
	TAKEOUT_BEGUN,				/* recorded and out of sight, but its table is
								 * not settled */
	TAKEOUT_DONE
} TakeoutState;

/* What kavach.dropped_month has of it. */
typedef struct MonthRecord
{
	bool		archived;
	bool		finished;
	char	   *relation;		/* NULL: there is no table any more */
	Oid			relid;			/* what has that name, or InvalidOid */
	char	   *schema;
} MonthRecord;

extern bool takeout_find_record(TimestampTz month, MonthRecord *record);
extern TakeoutState takeout_state(Oid ledger, TimestampTz month);
extern void takeout_begin(const Takeout *takeout);
extern bool takeout_finish(Oid ledger, TimestampTz month, bool patient);
extern List *takeout_unfinished(Oid ledger);
extern List *takeout_older_than(Oid ledger, int keep_minutes);
extern char *takeout_database_setting(void);
extern char *takeout_blockers(Oid ledger);

#endif							/* TAKEOUT_H */
