/*-------------------------------------------------------------------------
 * argument.h
 *		What callers hand in, and what they are answered.
 *-------------------------------------------------------------------------
 */
#ifndef ARGUMENT_H
#define ARGUMENT_H

#include "kavach.h"

#include "fmgr.h"
#include "access/tupdesc.h"

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
extern void *kept_for_calls(FunctionCallInfo fcinfo, Size size);
extern void refuse_null(const char *name);
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

#endif							/* ARGUMENT_H */
