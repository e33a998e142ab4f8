/*-------------------------------------------------------------------------
 * query.h
 *		SQL with the owner's rights, in the latest snapshot.
 *-------------------------------------------------------------------------
 */
#ifndef QUERY_H
#define QUERY_H

#include "kavach.h"

#include "utils/snapshot.h"

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
extern Oid	query_owner(void);
extern void query_before_each(void (*function) (Oid ledger));
extern void query_begin(OwnerRights *saved);
extern void query_end(OwnerRights *saved);
extern uint64 query_select(Statement *statement, Datum *values, const char *nulls);
extern uint64 query_select_in(Snapshot snapshot, Statement *statement, Datum *values, const char *nulls);
extern void query_open(Statement *statement, Datum *values, const char *nulls);
extern uint64 query_fetch(long count);
extern uint64 query_execute(Statement *statement, Datum *values, const char *nulls);
extern void query_forget(Statement *statement);
extern void query_avoid_scans(void);
extern void query_expect_many(void);
extern void query_utility(const char *sql);
extern char *query_text(uint64 row, int column);
extern OptionalInt64 query_int64(uint64 row, int column);
extern Datum query_datum(uint64 row, int column, bool *isnull);

#endif							/* QUERY_H */
