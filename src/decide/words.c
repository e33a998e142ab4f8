/*-------------------------------------------------------------------------
 * words.c
 *		How texts and numbers read in a reason.
 *
 * Reasons are kept in the ledger, row by row, and hold what callers hand in:
 * whatever that is, they stay short, on one line, and valid in the database's
 * encoding.
 *-------------------------------------------------------------------------
 */
#include "decide/words.h"

#include "lib/stringinfo.h"
#include "mb/pg_wchar.h"
#include "utils/json.h"

#define MAX_QUOTED_BYTES	100

/* The text, or as many of its characters as fit, and dots. */
const char *
clip_text(const char *text, int max_bytes)
{
	int			length = strlen(text);

	if (length <= max_bytes)
		return text;

	return psprintf("%.*s...", pg_mbcliplen(text, length, max_bytes - 3), text);
}

/* In quotes and on one line; what is cut off is outside of the quotes. */
char *
quote_text(const char *text)
{
	StringInfoData quoted;
	int			length = strlen(text);
	int			kept = pg_mbcliplen(text, length, MAX_QUOTED_BYTES);

	initStringInfo(&quoted);
	escape_json(&quoted, pnstrdup(text, kept));
	if (kept < length)
		appendStringInfoString(&quoted, "...");
	return quoted.data;
}

const char *
plural(int64 number, const char *one, const char *many)
{
	return number == 1 ? one : many;
}
