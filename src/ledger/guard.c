/*-------------------------------------------------------------------------
 * guard.c
 *		What nobody may change or remove: the rows of the ledger.
 *
 * Rows: triggers refuse UPDATE, DELETE and TRUNCATE.  They are ENABLE ALWAYS,
 * so that session_replication_role and logical replication do not switch them
 * off, and spare no one: a correction is a new row.
 *
 * Tables: as long as the ledger holds rows, object_access_hook refuses whatever
 * would drop it, one of its partitions, a column, a unique index (without
 * which a pg_restore --clean would double the rows) or one of those triggers,
 * be it DROP TABLE, DROP EXTENSION, DROP OWNED or a CASCADE from anywhere.  A
 * unique index may go while another does the same.  The hook tells of a DETACH
 * only at its end, and a concurrent one has committed half of it by then, so
 * that an event trigger looks at ALTER TABLE before it runs.  The same trigger
 * fires before every statement that can drop, and thereby loads this library,
 * and with it the hook, into a session that has called nothing of kavach on a
 * server that does not preload it.  Whoever means it sets kavach.allow_drop; a
 * month that is dropped or archived the way it should be is let go (takeout.c).
 *
 * Definitions: pg_dump leaves what CREATE EXTENSION makes to CREATE EXTENSION.
 * A column, an index or a constraint that somebody adds to the ledger or to
 * another table of ours makes a restore fail, or is silently missing after it.
 * So the event trigger refuses that (kavach.allow_alter lets it pass); what only
 * tunes a table is let through.  A month's partition is no member of the
 * extension, and dumped with all that it has.
 *
 * The hook runs in every database of a server that preloads kavach, for objects
 * of everybody.  So it opens, scans and locks nothing before it knows that the
 * extension is in this database and the object is the ledger's; and it relies
 * on nothing to be visible yet, as it runs in the midst of commands.
 *
 * Caveats: DROP DATABASE, and a superuser who takes the triggers away, are not
 * hindered.  A pg_restore --clean over a ledger with rows is.  Without preload
 * the TRUNCATE of a partition that was not made by kavach is not seen.
 *-------------------------------------------------------------------------
 */
#include "ledger/guard.h"

#include "access/attmap.h"
#include "access/genam.h"
#include "access/htup_details.h"
#include "access/table.h"
#include "access/tableam.h"
#include "catalog/dependency.h"
#include "catalog/index.h"
#include "catalog/namespace.h"
#include "catalog/objectaccess.h"
#include "catalog/objectaddress.h"
#include "catalog/partition.h"
#include "catalog/pg_class.h"
#include "catalog/pg_extension.h"
#include "catalog/pg_index.h"
#include "catalog/pg_inherits.h"
#include "catalog/pg_namespace.h"
#include "catalog/pg_proc.h"
#include "catalog/pg_trigger.h"
#include "commands/event_trigger.h"
#include "commands/extension.h"
#include "commands/trigger.h"
#include "miscadmin.h"
#include "storage/lmgr.h"
#include "utils/fmgroids.h"
#include "utils/guc.h"
#include "utils/lsyscache.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"
#include "utils/syscache.h"

#include "server/argument.h"
#include "server/compat.h"
#include "server/errors.h"
#include "server/query.h"

static bool allow_drop = false;
static bool allow_alter = false;
static Oid	let_go = InvalidOid;	/* the one partition that may be detached */

static object_access_hook_type previous_object_access = NULL;

ENTRY_POINT(kavach_refuse_change, 0, 0);
ENTRY_POINT(kavach_guard_ledger, 0, 0);

/* Lets a partition be detached from here on; InvalidOid: none. */
void
guard_let_go(Oid partition)
{
	let_go = partition;
}

static void
refuse_change(const char *table)
{
	ereport(ERROR,
			(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
			 errmsg("the ledger is append-only"),
			 errdetail("Rows of \"%s\" are never changed or removed.", table),
			 errhint("Correct a bill with kavach_adjust().")));
}

/* Of one that is no month of the ledger any more, or is about to be none. */
static void
refuse_insert(const char *table)
{
	ereport(ERROR,
			(errcode(ERRCODE_KAVACH_MONTH_DROPPED),
			 errmsg("table \"%s\" takes no more rows", table),
			 errdetail("The month was taken out of the ledger.")));
}

/* Trigger: refuses UPDATE, DELETE and TRUNCATE, and of a month that was taken out INSERT. */
static Datum
kavach_refuse_change_checked(PG_FUNCTION_ARGS)
{
	TriggerData *trigger = (TriggerData *) fcinfo->context;

	if (!CALLED_AS_TRIGGER(fcinfo))
		ereport(ERROR,
				(errcode(ERRCODE_E_R_I_E_TRIGGER_PROTOCOL_VIOLATED),
				 errmsg("kavach.refuse_change() must be called as a trigger")));
	if (TRIGGER_FIRED_BY_INSERT(trigger->tg_event))
		refuse_insert(RelationGetRelationName(trigger->tg_relation));
	refuse_change(RelationGetRelationName(trigger->tg_relation));
	PG_RETURN_NULL();			/* keep compiler quiet */
}

/* ---- what belongs to the ledger, and whether there is anything to lose ---- */

/* Whether the extension has made it. */
static bool
is_member(Oid class_id, Oid object_id)
{
	Oid			extension = get_extension_oid("kavach", true);

	return OidIsValid(extension) && getExtensionOfObject(class_id, object_id) == extension;
}

/* By its name, or by the extension, where somebody has renamed it. */
static bool
is_ledger(Oid relid)
{
	return get_rel_relkind(relid) == RELKIND_PARTITIONED_TABLE &&
		(relid == find_ledger() || is_member(RelationRelationId, relid));
}

/* InvalidOid for one that is not attached yet, or no more. */
static Oid
parent_of(Oid relid)
{
	if (!get_rel_relispartition(relid) || !has_superclass(relid))
		return InvalidOid;
	return get_partition_parent(relid, true);
}

/*
 * The ledger that a table is, or is a partition of, one that is being detached
 * included; otherwise InvalidOid.
 */
static Oid
ledger_of(Oid relid)
{
	Oid			parent;

	while (OidIsValid(parent = parent_of(relid)))
		relid = parent;
	return is_ledger(relid) ? relid : InvalidOid;
}

/* The table that a unique index is of; InvalidOid for one that is no more valid. */
static Oid
table_of_unique_index(Oid relid)
{
	HeapTuple	tuple = SearchSysCache1(INDEXRELID, ObjectIdGetDatum(relid));
	Form_pg_index index;
	Oid			table = InvalidOid;

	if (!HeapTupleIsValid(tuple))
		return InvalidOid;
	index = (Form_pg_index) GETSTRUCT(tuple);
	if (index->indisunique && index->indisvalid)
		table = index->indrelid;
	ReleaseSysCache(tuple);
	return table;
}

/* What is unique in every partition; unique indexes on anything else are not ours. */
static bool
is_key_of_ledger(Relation index)
{
	static const char *const keys[] = {
		"id", "settles", "request_id,agent_id,kind",
		"agent_id,kind,request_id"	/* of months from before 0.2.0 */
	};
	StringInfoData columns;

	initStringInfo(&columns);
	for (int i = 0; i < index->rd_index->indnkeyatts; i++)
	{
		char	   *column = get_attname(index->rd_index->indrelid, index->rd_index->indkey.values[i], true);

		appendStringInfo(&columns, "%s%s", i > 0 ? "," : "", column ? column : "");
	}
	for (int i = 0; i < (int) lengthof(keys); i++)
	{
		if (same_text(columns.data, keys[i]))
			return true;
	}
	return false;
}

/*
 * Whether an index is one by which the ledger knows a call again: what it keeps
 * unique is unique by the rules of kavach, not by somebody else's.
 */
bool
guard_is_key_of_calls(const char *schema, const char *name)
{
	Oid			namespace_id = schema ? get_namespace_oid(schema, true) : InvalidOid;
	Oid			index_id = OidIsValid(namespace_id) && name ? get_relname_relid(name, namespace_id) : InvalidOid;
	Oid			table = OidIsValid(index_id) ? table_of_unique_index(index_id) : InvalidOid;
	Relation	index;
	bool		is_key;

	if (!OidIsValid(table) || !OidIsValid(ledger_of(table)))
		return false;
	index = index_open(index_id, AccessShareLock);
	is_key = is_key_of_ledger(index);
	index_close(index, NoLock);
	return is_key;
}

/* Whether another index of the same table keeps unique what this one does. */
static bool
can_replace(Relation other, Relation index, Relation table)
{
	AttrMap    *same_columns = make_attrmap(RelationGetNumberOfAttributes(table));

	for (int i = 0; i < same_columns->maplen; i++)
		same_columns->attnums[i] = i + 1;
	return other->rd_index->indisvalid &&
		other->rd_index->indisready &&
		other->rd_index->indimmediate &&
		CompareIndexInfo(BuildIndexInfo(index), BuildIndexInfo(other),
						 index->rd_indcollation, other->rd_indcollation,
						 index->rd_opfamily, other->rd_opfamily,
						 same_columns);
}

/* Whether the table would no more be as unique as the ledger needs it, without this index. */
static bool
is_last_of_its_kind(Oid table_id, Oid index_id)
{
	Relation	table = table_open(table_id, AccessShareLock);
	Relation	index = index_open(index_id, AccessShareLock);
	bool		last = is_key_of_ledger(index);
	ListCell   *cell;

	foreach(cell, RelationGetIndexList(table))
	{
		Relation	other;

		if (!last || lfirst_oid(cell) == index_id)
			continue;
		other = index_open(lfirst_oid(cell), AccessShareLock);
		last = !can_replace(other, index, table);
		index_close(other, NoLock);
	}
	index_close(index, NoLock);
	table_close(table, NoLock);
	return last;
}

/* The table whose rows a trigger keeps; InvalidOid for a trigger of others. */
static Oid
table_of_guard(Oid trigger_id)
{
	Relation	triggers = table_open(TriggerRelationId, AccessShareLock);
	ScanKeyData key;
	SysScanDesc scan;
	HeapTuple	tuple;
	Oid			table = InvalidOid;

	ScanKeyInit(&key, Anum_pg_trigger_oid, BTEqualStrategyNumber, F_OIDEQ, ObjectIdGetDatum(trigger_id));
	scan = systable_beginscan(triggers, TriggerOidIndexId, true, NULL, 1, &key);
	tuple = systable_getnext(scan);
	if (HeapTupleIsValid(tuple))
	{
		Form_pg_trigger trigger = (Form_pg_trigger) GETSTRUCT(tuple);

		if (same_text(get_func_name(trigger->tgfoid), "refuse_change") &&
			is_member(ProcedureRelationId, trigger->tgfoid))
			table = trigger->tgrelid;
	}
	systable_endscan(scan);
	table_close(triggers, AccessShareLock);
	return table;
}

/* Whether a table has rows, uncommitted ones included. */
static bool
has_rows(Oid relid)
{
	Relation	table = table_open(relid, AccessShareLock);
	bool		found = false;

	if (RELKIND_HAS_TABLE_AM(table->rd_rel->relkind))
	{
		SnapshotData dirty;
		TupleTableSlot *slot = table_slot_create(table, NULL);
		TableScanDesc scan;

		InitDirtySnapshot(dirty);
		scan = compat_table_beginscan(table, &dirty);
		found = table_scan_getnextslot(scan, ForwardScanDirection, slot);
		table_endscan(scan);
		ExecDropSingleTupleTableSlot(slot);
	}
	else
		found = table->rd_rel->relkind != RELKIND_PARTITIONED_TABLE;	/* who knows */
	table_close(table, NoLock);
	return found;
}

static bool
ledger_has_rows(Oid ledger)
{
	ListCell   *cell;

	foreach(cell, find_all_inheritors(ledger, AccessShareLock, NULL))
	{
		if (has_rows(lfirst_oid(cell)))
			return true;
	}
	return false;
}

/* ---- what would lose rows ---- */

/*
 * Raises an error where a statement takes a table of the ledger away from it.
 * InvalidOid is no table of the ledger.
 */
static void
refuse_loss(Oid relid)
{
	Oid			ledger = allow_drop ? InvalidOid : ledger_of(relid);

	if (!OidIsValid(ledger) || relid == let_go)
		return;

	/* its own rows first: the ledger's are not those of one being detached */
	if (has_rows(relid) || ledger_has_rows(ledger))
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
				 errmsg("the ledger holds rows and cannot be taken apart"),
				 errdetail("The statement drops or detaches table \"%s\", or drops a column, a unique index or a trigger of it.",
						   get_rel_name(relid)),
				 errhint("A month is taken out by kavach_drop_month() or kavach_archive_month(). Otherwise export or dump what is to be kept; then, as a superuser: SET kavach.allow_drop = on.")));
}

/* What is dropped may be a table, a column of one, an index, or another relation. */
static void
refuse_drop(Oid relid)
{
	Oid			table;

	if (get_rel_relkind(relid) != RELKIND_INDEX)
	{
		refuse_loss(relid);
		return;
	}
	table = table_of_unique_index(relid);
	if (OidIsValid(ledger_of(table)) && is_last_of_its_kind(table, relid))
		refuse_loss(table);
}

/*
 * Partitions that were not made by kavach have no trigger on TRUNCATE.  That of
 * an empty one is let through: pg_restore --jobs does it before each COPY.
 */
static void
refuse_truncate(Oid relid)
{
	if (OidIsValid(ledger_of(relid)) && has_rows(relid))
		refuse_change(get_rel_name(relid));
}

/*
 * A partition has come or gone, which cannot be seen yet, and all its locks are
 * held: one that has gone still has a parent.  It was looked at before
 * (check_alter_table), but may have got its first row since.
 */
static void
refuse_late_detach(Oid relid)
{
	if (OidIsValid(ledger_of(relid)) && has_rows(relid))
		refuse_loss(relid);
}

/* Whether what happens to an object of this class may concern the ledger. */
static bool
is_watched(ObjectAccessType access, Oid class_id)
{
	switch (access)
	{
		case OAT_DROP:
			return class_id == RelationRelationId || class_id == TriggerRelationId;
		case OAT_TRUNCATE:
			return class_id == RelationRelationId;
		case OAT_POST_ALTER:
			return class_id == InheritsRelationId;
		default:
			return false;
	}
}

static void
at_object_access(ObjectAccessType access, Oid class_id, Oid object_id, int sub_id, void *arg)
{
	if (previous_object_access)
		previous_object_access(access, class_id, object_id, sub_id, arg);

	/* pg_upgrade takes a database apart and together as it was */
	if (!is_watched(access, class_id) || IsBinaryUpgrade ||
		!OidIsValid(get_extension_oid("kavach", true)))
		return;
	if (access == OAT_TRUNCATE)
		refuse_truncate(object_id);
	else if (access == OAT_POST_ALTER)
		refuse_late_detach(object_id);
	else if (class_id == TriggerRelationId)
		refuse_loss(table_of_guard(object_id));
	else
		refuse_drop(object_id);
}

/* A ledger that a crash empties is none. */
static void
refuse_unlogged(Oid relid)
{
	if (!allow_drop && OidIsValid(ledger_of(relid)))
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
				 errmsg("the ledger cannot be unlogged"),
				 errdetail("A crash would empty table \"%s\".", get_rel_name(relid))));
}

/* ENABLE TRIGGER ALL would leave them fire no more in logical replication. */
static void
refuse_triggers_off(Oid relid)
{
	if (is_member(RelationRelationId, relid) || OidIsValid(ledger_of(relid)))
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
				 errmsg("the triggers of table \"%s\" cannot be switched all together", get_rel_name(relid)),
				 errdetail("They keep the ledger append-only and make changes known to other sessions, and are enabled as ALWAYS."),
				 errhint("Switch triggers of your own by name; restore without --disable-triggers.")));
}

/* ---- what a dump would not hold ---- */

static void
report_alter(Oid class_id, Oid object_id, bool ledger)
{
	ObjectAddress object;

	ObjectAddressSet(object, class_id, object_id);
	ereport(ERROR,
			(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
			 errmsg("cannot alter %s, as a dump would not hold the change", getObjectDescription(&object, false)),
			 errdetail("pg_dump leaves to CREATE EXTENSION what kavach has made: a restore would fail, or come without the change."),
			 ledger ? errhint("Indexes, constraints, triggers and policies of a month's partition are dumped: put it there. Or, as a superuser: SET kavach.allow_alter = on.") :
			 errhint("Put what is yours into objects of your own. Or, as a superuser: SET kavach.allow_alter = on.")));
}

static void
refuse_alter(Oid class_id, Oid object_id)
{
	if (!allow_alter && is_member(class_id, object_id))
		report_alter(class_id, object_id,
					 class_id == RelationRelationId && is_ledger(object_id));
}

/* The relation that a statement names, or the table of an index; or InvalidOid. */
static Oid
relation_named(const RangeVar *name)
{
	Oid			relid = RangeVarGetRelid(name, NoLock, true);
	char		relkind = get_rel_relkind(relid);

	if (relkind == RELKIND_INDEX || relkind == RELKIND_PARTITIONED_INDEX)
		return IndexGetRelation(relid, true);
	return relid;
}

static void
refuse_alter_relation(const RangeVar *name)
{
	refuse_alter(RelationRelationId, relation_named(name));
}

static void
refuse_alter_function(ObjectType type, Node *name)
{
	Relation	none = NULL;
	ObjectAddress function = get_object_address(type, name, &none, AccessShareLock, true);

	refuse_alter(function.classId, function.objectId);
}

/* Whether it tells how a table is kept, and not what it is. */
static bool
is_tuning(AlterTableType type)
{
	switch (type)
	{
		case AT_AttachPartition:
		case AT_ChangeOwner:
		case AT_ClusterOn:
		case AT_DisableTrig:
		case AT_DropCluster:
		case AT_EnableAlwaysTrig:
		case AT_EnableReplicaTrig:
		case AT_EnableTrig:
		case AT_ReplicaIdentity:
		case AT_ResetOptions:
		case AT_ResetRelOptions:
		case AT_SetAccessMethod:
		case AT_SetCompression:
		case AT_SetLogged:
		case AT_SetOptions:
		case AT_SetRelOptions:
		case AT_SetStatistics:
		case AT_SetStorage:
		case AT_SetTableSpace:
		case AT_ValidateConstraint:
			return true;
		default:
			return false;
	}
}

/* ---- statements, before they run ---- */

static void
check_alter_table(const AlterTableStmt *statement)
{
	Oid			relid = relation_named(statement->relation);
	ListCell   *cell;

	if (!OidIsValid(relid))
		return;
	foreach(cell, statement->cmds)
	{
		const AlterTableCmd *command = lfirst_node(AlterTableCmd, cell);

		switch (command->subtype)
		{
			case AT_DetachPartition:
			case AT_DetachPartitionFinalize:
				refuse_loss(RangeVarGetRelid(castNode(PartitionCmd, command->def)->name, NoLock, true));
				break;
			case AT_SetUnLogged:
				refuse_unlogged(relid);
				refuse_alter(RelationRelationId, relid);
				break;
			case AT_DisableTrigAll:
			case AT_DisableTrigUser:
			case AT_EnableTrigAll:
			case AT_EnableTrigUser:
				refuse_triggers_off(relid);
				break;
			default:
				if (!is_tuning(command->subtype))
					refuse_alter(RelationRelationId, relid);
				break;
		}
	}
}

/* A schema of that name need not be a member: CREATE EXTENSION kavach SCHEMA kavach. */
static void
check_rename(const RenameStmt *statement)
{
	if (statement->relation != NULL)
		refuse_alter_relation(statement->relation);
	else if (statement->renameType == OBJECT_FUNCTION || statement->renameType == OBJECT_ROUTINE)
		refuse_alter_function(statement->renameType, statement->object);
	else if (statement->renameType == OBJECT_SCHEMA && !allow_alter &&
			 same_text(statement->subname, "kavach"))
		report_alter(NamespaceRelationId, get_namespace_oid("kavach", false), false);
}

static void
check_set_schema(const AlterObjectSchemaStmt *statement)
{
	if (statement->relation != NULL)
		refuse_alter_relation(statement->relation);
	else if (statement->objectType == OBJECT_FUNCTION || statement->objectType == OBJECT_ROUTINE)
		refuse_alter_function(statement->objectType, statement->object);
	else if (statement->objectType == OBJECT_EXTENSION && same_text(strVal(statement->object), "kavach"))
		ereport(ERROR,
				(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
				 errmsg("extension \"kavach\" does not support SET SCHEMA"),
				 errdetail("Its tables and views stay in schema kavach."),
				 errhint("Rename the schema that its functions are in: ALTER SCHEMA ... RENAME TO ....")));
}

/* ADD takes a table's rows out of dumps, DROP puts what CREATE EXTENSION makes into them. */
static void
check_members(const AlterExtensionContentsStmt *statement)
{
	if (!allow_alter && same_text(statement->extname, "kavach"))
		report_alter(ExtensionRelationId, get_extension_oid("kavach", false), false);
}

static void
check_statistics(const CreateStatsStmt *statement)
{
	ListCell   *cell;

	foreach(cell, statement->relations)
	{
		if (IsA(lfirst(cell), RangeVar))
			refuse_alter_relation(lfirst_node(RangeVar, cell));
	}
}

static void
check_statement(Node *statement)
{
	switch (nodeTag(statement))
	{
		case T_AlterTableStmt:
			check_alter_table(castNode(AlterTableStmt, statement));
			break;
		case T_RenameStmt:
			check_rename(castNode(RenameStmt, statement));
			break;
		case T_AlterObjectSchemaStmt:
			check_set_schema(castNode(AlterObjectSchemaStmt, statement));
			break;
		case T_AlterExtensionContentsStmt:
			check_members(castNode(AlterExtensionContentsStmt, statement));
			break;
		case T_IndexStmt:
			refuse_alter_relation(castNode(IndexStmt, statement)->relation);
			break;
		case T_CreateTrigStmt:
			refuse_alter_relation(castNode(CreateTrigStmt, statement)->relation);
			break;
		case T_CreatePolicyStmt:
			refuse_alter_relation(castNode(CreatePolicyStmt, statement)->table);
			break;
		case T_RuleStmt:
			refuse_alter_relation(castNode(RuleStmt, statement)->relation);
			break;
		case T_CreateStatsStmt:
			check_statistics(castNode(CreateStatsStmt, statement));
			break;
		default:
			break;
	}
}

/* Whether the statement is one of CREATE or ALTER EXTENSION kavach, or pg_upgrade's. */
static bool
is_our_own(void)
{
	return IsBinaryUpgrade ||
		(creating_extension && CurrentExtensionObject == get_extension_oid("kavach", true));
}

/* Event trigger: runs before statements that may drop or alter something of ours. */
static Datum
kavach_guard_ledger_checked(PG_FUNCTION_ARGS)
{
	EventTriggerData *event = (EventTriggerData *) fcinfo->context;

	if (!CALLED_AS_EVENT_TRIGGER(fcinfo))
		ereport(ERROR,
				(errcode(ERRCODE_E_R_I_E_EVENT_TRIGGER_PROTOCOL_VIOLATED),
				 errmsg("kavach.guard_ledger() must be called as an event trigger")));
	if (!is_our_own())
		check_statement(event->parsetree);
	PG_RETURN_NULL();
}

void
guard_install(void)
{
	DefineCustomBoolVariable("kavach.allow_drop",
							 "Lets statements drop or detach the ledger's tables while it holds rows.",
							 NULL,
							 &allow_drop,
							 false,
							 PGC_SUSET,
							 0,
							 NULL, NULL, NULL);
	DefineCustomBoolVariable("kavach.allow_alter",
							 "Lets statements change what kavach has made in ways that a dump does not hold.",
							 NULL,
							 &allow_alter,
							 false,
							 PGC_SUSET,
							 0,
							 NULL, NULL, NULL);
	previous_object_access = object_access_hook;
	object_access_hook = at_object_access;
}
