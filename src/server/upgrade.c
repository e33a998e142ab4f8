/*-------------------------------------------------------------------------
 * upgrade.c
 *		What the scripts of ALTER EXTENSION UPDATE need of C.
 *
 * Whatever a script of an extension grants becomes an initial privilege
 * (pg_init_privs): pg_dump leaves it to CREATE EXTENSION.  A script that drops
 * a function and creates its successor has to grant that to the roles which
 * could call the old one, and these must be in a dump.  So such grants are
 * made as if in a session of their owner's, and not by the script.
 *
 * Only an update of kavach can do that: the SQL function is created and dropped
 * by the script that uses it.
 *-------------------------------------------------------------------------
 */
#include "kavach.h"

#include "commands/extension.h"
#include "executor/spi.h"
#include "utils/builtins.h"

#include "server/argument.h"

ENTRY_POINT(kavach_grant_unrecorded, 1, 0);

/* SQL: kavach.grant_unrecorded(statement), in scripts alone */
static Datum
kavach_grant_unrecorded_checked(PG_FUNCTION_ARGS)
{
	if (!creating_extension || CurrentExtensionObject != get_extension_oid("kavach", true))
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("kavach.grant_unrecorded() can only be called by an update of kavach")));
	if (PG_ARGISNULL(0))
		ereport(ERROR,
				(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
				 errmsg("statement must not be NULL")));
	SPI_connect();
	creating_extension = false;
	PG_TRY();
	{
		SPI_execute(text_to_cstring(PG_GETARG_TEXT_PP(0)), false, 0);
	}
	PG_FINALLY();
	{
		creating_extension = true;
	}
	PG_END_TRY();
	SPI_finish();
	PG_RETURN_BOOL(true);
}
