/*-------------------------------------------------------------------------
 * constraint.h
 *		The constraints of a permission: checked, and made ready.
 *-------------------------------------------------------------------------
 */
#ifndef CONSTRAINT_H
#define CONSTRAINT_H

#include "kavach.h"

#include "utils/date.h"

#include "memory/flat.h"

/* In the order in which they are applied; a rate is for budget time. */
typedef enum ConstraintKind
{
	CONSTRAINT_ARGUMENTS,
	CONSTRAINT_TIME,
	CONSTRAINT_IP,
	CONSTRAINT_RATE
} ConstraintKind;

#define NUM_CONSTRAINTS	(CONSTRAINT_RATE + 1)

/* Ready to be applied.  What a reason shows is as it was written. */
typedef struct Constraints
{
	uint8		present;		/* a bit for each kind */
	uint8		unreadable;		/* those of them that constraint_read refuses */
	Jsonb	   *stored;			/* where there are such, else NULL */

	int			nglobs;
	char	  **globs;			/* allowed_arg_patterns */
	text	  **patterns;		/* the same for LIKE */

	char	   *opening;		/* time_window */
	char	   *closing;
	TimeADT		opens;
	TimeADT		closes;

	int			nnetworks;
	char	  **networks;		/* ip_allowlist */
	inet	  **addresses;		/* the same */

	int64		max_calls_per_hour;
} Constraints;

extern const char *const constraint_names[NUM_CONSTRAINTS];

extern void constraint_check(Jsonb *constraints);
extern void constraint_compile(Flat *flat, uint32 pointer, Jsonb *constraints);
extern bool constraint_read(const Constraints *constraints, ConstraintKind kind);
extern inet *plain_address(inet *address);

#endif							/* CONSTRAINT_H */
