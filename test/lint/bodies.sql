-- bodies.sql: what plpgsql_check finds in the bodies of PL/pgSQL functions.
--
-- Of its performance warnings there are none that matter here: what they say of volatility ends at
-- dynamic SQL. kavach_grant_role and kavach_revoke_role put together what they run from names that
-- are quoted, which plpgsql_check cannot see. A trigger's function is looked at with a table that it
-- is on.
SELECT p.oid::regprocedure || ': ' || warning
  FROM pg_extension e
  JOIN pg_depend d ON d.refclassid = 'pg_extension'::regclass AND d.refobjid = e.oid AND d.deptype = 'e'
  JOIN pg_proc p ON d.classid = 'pg_proc'::regclass AND d.objid = p.oid
  JOIN pg_language l ON l.oid = p.prolang,
       plpgsql_check_function(p.oid, coalesce((SELECT min(t.tgrelid) FROM pg_trigger t WHERE t.tgfoid = p.oid), 0),
                              fatal_errors => false, performance_warnings => false,
                              security_warnings => p.proname NOT IN ('kavach_grant_role', 'kavach_revoke_role')) AS warning
 WHERE e.extname = 'kavach' AND l.lanname = 'plpgsql';
