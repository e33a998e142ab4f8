-- role.sql
--   Who may call what.  Nothing is PUBLIC; kavach_grant_role gives.
--
-- Views read with their owner's rights.  None is a security_barrier, as none
-- keeps rows from those who may read it: a reader has the whole ledger.

CREATE FUNCTION kavach.privileges(role regrole, access text, OUT privilege text, OUT schema text, OUT held boolean, OUT owned boolean)
RETURNS SETOF record
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
  app CONSTANT text[] := ARRAY['kavach_authorize', 'kavach_record_usage', 'kavach_check_budget', 'kavach_unsettled'];
  reader CONSTANT text[] := ARRAY[
    'kavach_query_audit', 'kavach_cost_by_agent', 'kavach_cost_by_user', 'kavach_cost_by_day',
    'kavach_billing_report', 'kavach_usage_report', 'kavach_export', 'kavach_export_json',
    'range_start', 'range_edge', 'require_months', 'kept_since', 'no_rows', 'audit_limit', 'is_page', 'audit_page', 'month_start', 'month_end', 'uuid7_ts', 'uuid7_since', 'uuid7_until',
    'usage_between', 'usage_grouped', 'report_whole', 'groups_by', 'label_keys', 'check_report', 'charged_at', 'clock_now', 'windows', 'limit_keys',
    'of_scope', 'current_usage', 'read_counters', 'read_counter_stats', 'read_cache_stats', 'read_worker', 'batch_holders'];
  admin CONSTANT text[] := app || reader || ARRAY[
    'kavach_create_agent', 'kavach_update_agent', 'kavach_revoke_agent', 'kavach_restore_agent', 'kavach_drop_agent',
    'kavach_grant_permission', 'kavach_update_permission', 'kavach_revoke_permission',
    'kavach_create_policy', 'kavach_update_policy', 'kavach_drop_policy', 'kavach_reset_policy',
    'kavach_adjust', 'kavach_reload_counters', 'kavach_create_months', 'wake_worker',
    'kavach_drop_month', 'kavach_archive_month', 'kavach_attach_month'];
  functions text[];
BEGIN
  IF role IS NULL OR access IS NULL THEN
    RAISE EXCEPTION '% must not be NULL', CASE WHEN role IS NULL THEN 'role' ELSE 'access' END
      USING ERRCODE = 'null_value_not_allowed';
  END IF;
  IF NOT EXISTS (SELECT FROM pg_roles r WHERE r.oid = role) THEN
    RAISE EXCEPTION 'role "%" does not exist', role
      USING ERRCODE = 'undefined_object';
  END IF;
  functions := CASE access WHEN 'app' THEN app WHEN 'reader' THEN reader WHEN 'admin' THEN admin END;
  IF functions IS NULL THEN
    RAISE EXCEPTION 'unrecognized access "%"', access
      USING ERRCODE = 'invalid_parameter_value',
            DETAIL = 'Valid kinds of access are app, reader and admin.';
  END IF;

  RETURN QUERY
    WITH member AS (
      SELECT d.classid, d.objid
        FROM pg_extension e
        JOIN pg_depend d ON d.refclassid = 'pg_extension'::regclass AND d.refobjid = e.oid AND d.deptype = 'e'
       WHERE e.extname = 'kavach'
    ), object (name, schema, kind, acl, owner) AS (
      -- the schemas, then the functions, then what may be read
      SELECT format('USAGE ON SCHEMA %I', n.nspname), quote_ident(n.nspname), 'USAGE', coalesce(n.nspacl, acldefault('n', n.nspowner)), n.nspowner
        FROM pg_namespace n
       WHERE n.oid = (SELECT e.extnamespace FROM pg_extension e WHERE e.extname = 'kavach') OR (n.nspname = 'kavach' AND access <> 'app')
       UNION ALL
      SELECT format('EXECUTE ON FUNCTION %s', p.oid::regprocedure), NULL, 'EXECUTE', coalesce(p.proacl, acldefault('f', p.proowner)), p.proowner
        FROM member m
        JOIN pg_proc p ON m.classid = 'pg_proc'::regclass AND m.objid = p.oid
       WHERE p.proname = ANY (functions)
       UNION ALL
      SELECT format('SELECT ON %s', c.oid::regclass), NULL, 'SELECT', coalesce(c.relacl, acldefault('r', c.relowner)), c.relowner
        FROM member m
        JOIN pg_class c ON m.classid = 'pg_class'::regclass AND m.objid = c.oid
       WHERE (c.relkind = 'v' AND access <> 'app') OR (c.relkind IN ('r', 'p') AND access = 'admin'))
    SELECT o.name, o.schema,
           w.owned OR EXISTS (SELECT FROM aclexplode(o.acl) a WHERE (a.grantee, a.grantor, a.privilege_type) = (role, o.owner, o.kind)),
           w.owned
      FROM object o
     CROSS JOIN LATERAL (
        SELECT role IN (SELECT e.extowner FROM pg_extension e WHERE e.extname = 'kavach' UNION ALL SELECT o.owner)) AS w (owned);
END
$$;

COMMENT ON FUNCTION kavach.privileges(regrole, text) IS
  'What a kind of access consists of (schema: of which it is the USAGE), and whether the role itself was granted it by the owner, or is the owner (owned): what it has through a group, as superuser or from others may go with that. Errors: 22004, 22023 bad input; 42704 unknown role.';

CREATE FUNCTION @extschema@.kavach_grant_role(role regrole, access text)
RETURNS boolean
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
  missing text;
  changed boolean := false;
BEGIN
  -- Two GRANT on an object at once end in an internal error of the server's.
  LOCK TABLE kavach.agent IN SHARE UPDATE EXCLUSIVE MODE;
  FOR missing IN SELECT p.privilege FROM kavach.privileges(role, access) p WHERE NOT p.held LOOP
    EXECUTE format('GRANT %s TO %s', missing, role);
    changed := true;
  END LOOP;
  RETURN changed;
END
$$;

COMMENT ON FUNCTION @extschema@.kavach_grant_role(regrole, text) IS
'Lets a role use kavach: true if it had not been granted all of that itself yet. For the extension''s owner; kavach_revoke_role takes it back.
access: app (authorize, record usage, check a budget, see what an agent has left open; reads and writes no table), reader (reports, exports and their views) or admin (both, agents, permissions, budgets and adjustments, and reading the tables).
Errors: 22004, 22023 bad input; 42704 unknown role.';

CREATE FUNCTION @extschema@.kavach_revoke_role(role regrole, access text)
RETURNS boolean
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
  other text := CASE access WHEN 'app' THEN 'reader' WHEN 'reader' THEN 'app' END;
  surplus record;
  changed boolean := false;
BEGIN
  LOCK TABLE kavach.agent IN SHARE UPDATE EXCLUSIVE MODE;
  IF access IN ('app', 'reader') AND (SELECT bool_and(p.held) FROM kavach.privileges(role, 'admin') p) THEN
    RAISE EXCEPTION 'role "%" has access admin, which includes %', role, access
      USING ERRCODE = 'invalid_parameter_value',
            HINT = format('SELECT kavach_revoke_role(%L, ''admin''), then grant what is to stay.', role);
  END IF;
  -- what the other kind of access has as well stays, where the role has that
  IF other IS NOT NULL AND NOT (SELECT bool_and(p.held) FROM kavach.privileges(role, other) p) THEN
    other := NULL;
  END IF;
  FOR surplus IN
    SELECT p.privilege, p.schema FROM kavach.privileges(role, access) p
     WHERE p.held AND NOT p.owned AND (other IS NULL OR p.privilege NOT IN (SELECT o.privilege FROM kavach.privileges(role, other) o))
     ORDER BY p.schema NULLS FIRST
  LOOP
    -- a schema last, and only when the role has nothing else in it: what it owns, what others granted
    CONTINUE WHEN EXISTS (
      SELECT FROM pg_shdepend d
       WHERE d.dbid = (SELECT b.oid FROM pg_database b WHERE b.datname = current_database())
         AND d.refclassid = 'pg_authid'::regclass AND d.refobjid = role
         AND (pg_identify_object(d.classid, d.objid, d.objsubid)).schema = surplus.schema);
    EXECUTE format('REVOKE %s FROM %s', surplus.privilege, role);
    changed := true;
  END LOOP;
  RETURN changed;
END
$$;

COMMENT ON FUNCTION @extschema@.kavach_revoke_role(regrole, text) IS
'Takes back what kavach_grant_role gave: true if there was something. What the role has through a group, from others, as superuser or as the owner is not touched, nor is USAGE of a schema in which it has something else. For the extension''s owner.
access: app or reader (what the other one needs as well stays, where the role has that), or admin: all of it, app and reader included.
Errors: 22004, 22023 bad input, or app or reader of a role that is admin; 42704 unknown role.';

-- Nothing is PUBLIC's, nor anybody's whom default privileges name, by
-- construction: whatever this script has made.
DO $$
DECLARE
  object record;
BEGIN
  FOR object IN
    SELECT DISTINCT o.name, a.grantee
      FROM (SELECT format('FUNCTION %s', p.oid::regprocedure), coalesce(p.proacl, acldefault('f', p.proowner)), p.proowner
              FROM pg_extension e
              JOIN pg_depend d ON d.refclassid = 'pg_extension'::regclass AND d.refobjid = e.oid AND d.deptype = 'e'
              JOIN pg_proc p ON d.classid = 'pg_proc'::regclass AND d.objid = p.oid
             WHERE e.extname = 'kavach'
             UNION ALL
            SELECT 'SCHEMA kavach', n.nspacl, n.nspowner FROM pg_namespace n WHERE n.nspname = 'kavach') AS o (name, acl, owner),
           aclexplode(o.acl) a
     WHERE a.grantee <> o.owner
  LOOP
    EXECUTE format('REVOKE ALL ON %s FROM %s', object.name,
                   CASE WHEN object.grantee = 0 THEN 'PUBLIC' ELSE object.grantee::regrole::text END);
  END LOOP;

  PERFORM kavach.make_private(c.oid)
     FROM pg_extension e
     JOIN pg_depend d ON d.refclassid = 'pg_extension'::regclass AND d.refobjid = e.oid AND d.deptype = 'e'
     JOIN pg_class c ON d.classid = 'pg_class'::regclass AND d.objid = c.oid
    WHERE e.extname = 'kavach' AND c.relkind IN ('r', 'p', 'v', 'S');
END
$$;

-- Who watches the server sees how counters, cache and worker do, and of the ledger how many rows are in which batch.
GRANT USAGE ON SCHEMA kavach TO pg_monitor;
GRANT SELECT ON kavach.counters, kavach.counter_stats, kavach.cache_stats, kavach.batch_status, kavach.worker_status TO pg_monitor;
GRANT EXECUTE ON FUNCTION kavach.read_counters(), kavach.read_counter_stats(), kavach.read_cache_stats(), kavach.read_worker(), kavach.batch_holders() TO pg_monitor;
