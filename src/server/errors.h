/*-------------------------------------------------------------------------
 * errors.h
 *		SQLSTATEs of kavach's own: what a caller catches, and acts upon.
 *
 * Class KV: the standard leaves classes that begin with I to Z to
 * implementations, and PostgreSQL has none of this name.  A caller's bad input
 * keeps the codes of PostgreSQL.  doc/reference.md has the table, with the HTTP
 * statuses; a code never changes its meaning, and is never used again.
 *-------------------------------------------------------------------------
 */
#ifndef KAVACH_ERRORS_H
#define KAVACH_ERRORS_H

#include "utils/elog.h"

/* a request_id that stands for another call, or for another than audit_id does */
#define ERRCODE_KAVACH_REQUEST_ID_REUSED		MAKE_SQLSTATE('K', 'V', '0', '0', '1')

/* an audit_id that is no authorization of this agent's */
#define ERRCODE_KAVACH_UNKNOWN_AUTHORIZATION	MAKE_SQLSTATE('K', 'V', '0', '0', '2')

/* usage that was recorded before, with another figure */
#define ERRCODE_KAVACH_USAGE_DIFFERS			MAKE_SQLSTATE('K', 'V', '0', '0', '3')

/* an authorization that was refused, so that there is nothing to settle */
#define ERRCODE_KAVACH_REFUSED_AUTHORIZATION	MAKE_SQLSTATE('K', 'V', '0', '0', '4')

/* a time whose rows the ledger has no more, as its month was dropped or archived */
#define ERRCODE_KAVACH_MONTH_DROPPED			MAKE_SQLSTATE('K', 'V', '0', '0', '5')

#endif							/* KAVACH_ERRORS_H */
