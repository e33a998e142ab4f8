-- catalog.sql: what the fuzzer can call, from the catalogs, so that what is new is fuzzed by itself.
-- Tab-separated: what it is, its name, its type, its arguments (name, type, whether required).
WITH member AS (
  SELECT d.classid, d.objid
    FROM pg_depend d JOIN pg_extension e ON d.refclassid = 'pg_extension'::regclass AND d.refobjid = e.oid
   WHERE e.extname = 'kavach' AND d.deptype = 'e')
SELECT concat_ws(E'\t', 'function', format('%I.%I', n.nspname, p.proname),
         CASE WHEN t.typtype = 'p' AND t.typname ~ 'trigger' THEN t.typname
              WHEN t.typtype = 'c' OR t.typname = 'record' THEN 'row' ELSE 'value' END,
         (SELECT string_agg(format('%s,%s,%s', coalesce(p.proargnames[i], ''), format_type(p.proargtypes[i - 1], NULL),
                                   (i <= p.pronargs - p.pronargdefaults)::int), ';' ORDER BY i)
            FROM generate_series(1, p.pronargs) AS i))
  FROM member m
  JOIN pg_proc p ON m.classid = 'pg_proc'::regclass AND p.oid = m.objid
  JOIN pg_namespace n ON n.oid = p.pronamespace
  JOIN pg_type t ON t.oid = p.prorettype
 UNION ALL
SELECT concat_ws(E'\t', 'relation', format('%I.%I', n.nspname, c.relname), c.relkind)
  FROM member m
  JOIN pg_class c ON m.classid = 'pg_class'::regclass AND c.oid = m.objid AND c.relkind <> 'S'
  JOIN pg_namespace n ON n.oid = c.relnamespace
 UNION ALL
SELECT concat_ws(E'\t', 'setting', s.name, s.vartype, concat_ws(',', s.min_val, s.max_val, s.boot_val))
  FROM pg_settings s WHERE s.name LIKE 'kavach.%'
 ORDER BY 1;
