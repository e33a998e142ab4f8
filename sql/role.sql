-- role.sql
--   Who may call what.  Nothing is PUBLIC; kavach_grant_role gives.
--
-- Views read with their owner's rights.  None is a security_barrier, as none
-- keeps rows from those who may read it: a reader has the whole ledger.

CREATE FUNCTION @extschema@.kavach_grant_role(role regrole, access text)
RETURNS boolean
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
  app CONSTANT text[] := ARRAY['kavach_authorize', 'kavach_record_usage', 'kavach_check_budget'];
  reader CONSTANT text[] := ARRAY[
    'kavach_query_audit', 'kavach_cost_by_agent', 'kavach_cost_by_user', 'kavach_cost_by_day',
    'kavach_billing_report', 'kavach_export', 'kavach_export_json',
    'range_start', 'month_start', 'month_end', 'uuid7_ts', 'charged_at', 'clock_now',
    'current_usage', 'read_counters', 'read_counter_stats'];
  admin CONSTANT text[] := app || reader || ARRAY[
    'kavach_create_agent', 'kavach_update_agent', 'kavach_revoke_agent', 'kavach_restore_agent',
    'kavach_grant_permission', 'kavach_revoke_permission',
    'kavach_create_policy', 'kavach_update_policy', 'kavach_drop_policy', 'kavach_reset_policy',
    'kavach_adjust', 'kavach_reload_counters', 'kavach_create_months'];
  functions text[];
  changed boolean := false;
  object record;
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

  -- Two GRANT on an object at once end in an internal error of the server's.
  LOCK TABLE kavach.agent IN SHARE UPDATE EXCLUSIVE MODE;
  FOR object IN
    -- the schemas, then the functions, then what may be read
    SELECT format('USAGE ON SCHEMA %I', n.nspname) AS privilege,
           has_schema_privilege(role, n.oid, 'USAGE') AS held
      FROM pg_namespace n
     WHERE n.oid = (SELECT e.extnamespace FROM pg_extension e WHERE e.extname = 'kavach') OR (n.nspname = 'kavach' AND access <> 'app')
     UNION ALL
    SELECT format('EXECUTE ON FUNCTION %s', p.oid::regprocedure),
           has_function_privilege(role, p.oid, 'EXECUTE')
      FROM pg_extension e
      JOIN pg_depend d ON d.refclassid = 'pg_extension'::regclass AND d.refobjid = e.oid AND d.deptype = 'e'
      JOIN pg_proc p ON d.classid = 'pg_proc'::regclass AND d.objid = p.oid
     WHERE e.extname = 'kavach' AND p.proname = ANY (functions)
     UNION ALL
    SELECT format('SELECT ON %s', c.oid::regclass),
           has_table_privilege(role, c.oid, 'SELECT')
      FROM pg_extension e
      JOIN pg_depend d ON d.refclassid = 'pg_extension'::regclass AND d.refobjid = e.oid AND d.deptype = 'e'
      JOIN pg_class c ON d.classid = 'pg_class'::regclass AND d.objid = c.oid
     WHERE e.extname = 'kavach'
       AND ((c.relkind = 'v' AND access <> 'app') OR (c.relkind IN ('r', 'p') AND access = 'admin'))
  LOOP
    CONTINUE WHEN object.held;
    EXECUTE format('GRANT %s TO %s', object.privilege, role);
    changed := true;
  END LOOP;
  RETURN changed;
END
$$;

COMMENT ON FUNCTION @extschema@.kavach_grant_role(regrole, text) IS
'Lets a role use kavach: true if it could not do all of that yet. For the extension''s owner; REVOKE takes it back.
access: app (authorize, record usage, check a budget; reads and writes no table), reader (reports, exports and their views) or admin (both, agents, permissions, budgets and adjustments, and reading the tables).
Errors: 22004, 22023 bad input; 42704 unknown role.';

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
