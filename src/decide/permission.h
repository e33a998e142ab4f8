/*-------------------------------------------------------------------------
 * permission.h
 *		Which permissions admit a call.
 *-------------------------------------------------------------------------
 */
#ifndef PERMISSION_H
#define PERMISSION_H

#include "kavach.h"

#include "memory/catalog.h"

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

#endif							/* PERMISSION_H */
