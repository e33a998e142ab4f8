/*-------------------------------------------------------------------------
 * report.c
 *		What a usage report is grouped by.
 *
 * The names that kavach_usage_report takes, and what SQL has to know of them.
 *-------------------------------------------------------------------------
 */
#include "kavach.h"

#include "catalog/pg_type.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/timestamp.h"

#include "server/argument.h"
#include "server/clock.h"

ENTRY_POINT(kavach_report_whole, 2, 0);
ENTRY_POINT(kavach_groups_by, 2, 0);
ENTRY_POINT(kavach_check_report, 5, 0);
ENTRY_POINT(kavach_label_keys, 1, 0);

/* What usage can be grouped by: a column of kavach.usage_part. */
typedef struct Dimension
{
	const char *name;
	const char *column;
	bool		is_summed;		/* beforehand, by day and month; else only
								 * rows know it */
} Dimension;

#define NUM_DIMENSIONS	7

static const Dimension *
dimension(int i)
{
	static const Dimension others[] = {
		{"provider", "provider", true},
		{"model", "model", true},
		{"action", "action", false},
		{"resource", "resource", false},
	};
	static const ScopeKind ids[] = {SCOPE_AGENT, SCOPE_USER, SCOPE_TENANT};
	static Dimension of_scope;

	if (i < (int) lengthof(others))
		return &others[i];
	of_scope.name = scopes[ids[i - lengthof(others)]].name;
	of_scope.column = scopes[ids[i - lengthof(others)]].column;
	of_scope.is_summed = true;
	return &of_scope;
}

static const char no_bucket[] = "none";

#define LABEL_PREFIX	"metadata."

static bool
is_label(const char *name)
{
	return strncmp(name, LABEL_PREFIX, strlen(LABEL_PREFIX)) == 0 && name[strlen(LABEL_PREFIX)] != '\0';
}

/* A bucket's name: the argument, or none where it is NULL. */
static char *
bucket_arg(FunctionCallInfo fcinfo, int argno)
{
	char	   *name;

	if (PG_ARGISNULL(argno))
		return pstrdup(no_bucket);
	name = text_to_cstring(PG_GETARG_TEXT_PP(argno));
	if (strcmp(name, no_bucket) != 0 && strcmp(name, periods[PERIOD_HOUR].name) != 0 &&
		strcmp(name, periods[PERIOD_DAY].name) != 0 && strcmp(name, periods[PERIOD_MONTH].name) != 0)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("unrecognized bucket \"%s\"", name),
				 errhint("Buckets are hour, day, month and none.")));
	return name;
}

static const Dimension *
find_dimension(const char *name)
{
	for (int i = 0; i < NUM_DIMENSIONS; i++)
		if (strcmp(name, dimension(i)->name) == 0)
			return dimension(i);
	if (is_label(name))
		return NULL;
	ereport(ERROR,
			(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
			 errmsg("cannot group by \"%s\"", name),
			 errhint("Groups are tenant, user, agent, provider, model, action, resource, and metadata.KEY for a key of the metadata.")));
}

/* The names in an array: the argument, or none where it is NULL. */
static char **
names_arg(FunctionCallInfo fcinfo, int argno, const char *argument, int *count)
{
	Datum	   *values;
	bool	   *nulls;
	char	  **names;

	*count = 0;
	if (PG_ARGISNULL(argno))
		return NULL;
	deconstruct_array(PG_GETARG_ARRAYTYPE_P(argno), TEXTOID, -1, false, TYPALIGN_INT, &values, &nulls, count);
	names = palloc(sizeof(char *) * *count);
	for (int i = 0; i < *count; i++)
	{
		if (nulls[i])
			ereport(ERROR,
					(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
					 errmsg("%s must not contain NULL", argument)));
		names[i] = TextDatumGetCString(values[i]);
	}
	return names;
}

static bool
is_summed(const char *group)
{
	const Dimension *found = find_dimension(group);

	return found != NULL && found->is_summed;
}

/* What tells such groups and buckets apart: sums of months, of days, or totals of these; NULL: only rows do. */
static const char *
report_whole(FunctionCallInfo fcinfo)
{
	int			ngroups;
	char	  **groups = names_arg(fcinfo, 0, "group_by", &ngroups);
	char	   *bucket = bucket_arg(fcinfo, 1);
	const char *whole = "monthly";

	if (strcmp(bucket, periods[PERIOD_DAY].name) == 0)
		whole = "daily";
	if (ngroups == 0)
		whole = "together";
	if (strcmp(bucket, periods[PERIOD_HOUR].name) == 0)
		whole = NULL;
	for (int i = 0; i < ngroups; i++)
		if (!is_summed(groups[i]))
			whole = NULL;
	return whole;
}

/* SQL: kavach.report_whole(group_by, bucket) */
static Datum
kavach_report_whole_checked(PG_FUNCTION_ARGS)
{
	const char *whole = report_whole(fcinfo);

	if (whole == NULL)
		PG_RETURN_NULL();
	PG_RETURN_TEXT_P(cstring_to_text(whole));
}

/* SQL: kavach.groups_by(group_by, column_name) */
static Datum
kavach_groups_by_checked(PG_FUNCTION_ARGS)
{
	int			ngroups;
	char	  **groups = names_arg(fcinfo, 0, "group_by", &ngroups);
	char	   *column;

	if (PG_ARGISNULL(1))
		PG_RETURN_NULL();
	column = text_to_cstring(PG_GETARG_TEXT_PP(1));
	for (int i = 0; i < ngroups; i++)
	{
		const Dimension *found = find_dimension(groups[i]);

		if (found != NULL && strcmp(found->column, column) == 0)
			PG_RETURN_BOOL(true);
	}
	PG_RETURN_BOOL(false);
}

static bool
is_bound(FunctionCallInfo fcinfo, int argno)
{
	return !PG_ARGISNULL(argno) && !TIMESTAMP_NOT_FINITE(PG_GETARG_TIMESTAMPTZ(argno));
}

/* SQL: kavach.check_report(group_by, bucket, since, until, fill_gaps) */
static Datum
kavach_check_report_checked(PG_FUNCTION_ARGS)
{
	(void) report_whole(fcinfo);
	if (PG_ARGISNULL(4))
		refuse_null("fill_gaps");
	if (PG_GETARG_BOOL(4) &&
		(strcmp(bucket_arg(fcinfo, 1), no_bucket) == 0 || !is_bound(fcinfo, 2) || !is_bound(fcinfo, 3)))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("there are no gaps to fill"),
				 errhint("Give since, until, and a bucket: hour, day or month.")));
	PG_RETURN_BOOL(true);
}

/* SQL: kavach.label_keys(group_by) */
static Datum
kavach_label_keys_checked(PG_FUNCTION_ARGS)
{
	int			ngroups;
	char	  **groups = names_arg(fcinfo, 0, "group_by", &ngroups);
	Datum	   *keys = palloc(sizeof(Datum) * Max(ngroups, 1));
	int			nkeys = 0;

	for (int i = 0; i < ngroups; i++)
		if (is_label(groups[i]))
			keys[nkeys++] = CStringGetTextDatum(groups[i] + strlen(LABEL_PREFIX));
	PG_RETURN_ARRAYTYPE_P(construct_array(keys, nkeys, TEXTOID, -1, false, TYPALIGN_INT));
}
