-- smith.sql: makes sqlsmith call kavach rather than the server's thousands of functions.
--
-- It looks for functions in pg_proc, unqualified: with smith first in the search_path it finds
-- kavach's and the server's pure ones.  It takes none that return rows, so these get wrappers.
SET client_min_messages = warning;
CREATE SCHEMA smith;
GRANT USAGE ON SCHEMA smith TO PUBLIC;

DO $$
DECLARE
  f record;
BEGIN
  FOR f IN
    SELECT p.oid::regproc AS name, 'smith.' || quote_ident(p.proname) AS wrapper,
           coalesce((SELECT string_agg(format_type(t, NULL), ', ' ORDER BY i) FROM unnest(p.proargtypes) WITH ORDINALITY AS a (t, i)), '') AS types,
           coalesce((SELECT string_agg('$' || i, ', ' ORDER BY i) FROM generate_series(1, p.pronargs) AS i), '') AS arguments
      FROM pg_depend d
      JOIN pg_extension e ON d.refclassid = 'pg_extension'::regclass AND d.refobjid = e.oid AND e.extname = 'kavach'
      JOIN pg_catalog.pg_proc p ON d.classid = 'pg_proc'::regclass AND p.oid = d.objid
      JOIN pg_type t ON t.oid = p.prorettype
     WHERE d.deptype = 'e' AND (p.proretset OR t.typtype = 'c' OR t.typname = 'record')
  LOOP
    EXECUTE format('CREATE FUNCTION %s(%s) RETURNS text LANGUAGE sql AS %L', f.wrapper, f.types,
                   format('SELECT f::text FROM %s(%s) AS f LIMIT 1', f.name, f.arguments));
  END LOOP;
END
$$;

CREATE VIEW smith.pg_proc AS
SELECT p.*
  FROM pg_catalog.pg_proc p
 WHERE p.pronamespace IN ('smith'::regnamespace, 'kavach'::regnamespace)
    OR p.proname ~ '^kavach_'
    OR (p.pronamespace = 'pg_catalog'::regnamespace AND p.provolatile = 'i' AND p.prokind = 'f' AND p.oid::bigint % 7 = 0)
    OR (p.pronamespace = 'pg_catalog'::regnamespace AND p.prokind IN ('a', 'w'));
GRANT SELECT ON smith.pg_proc TO PUBLIC;

-- Some thousand rows more.
SELECT count(kavach_authorize('agt_' || 1 + n % 25, 'run', 'mcp:openai:chat', tokens_cost => n % 13, arguments => '{"a": "b"}', ip => '10.0.0.1'))
  FROM fuzz.instant AS t, LATERAL set_config('kavach.clock', t.ts::text, false) AS clock, generate_series(1, 500) AS n;
RESET kavach.clock;
ANALYZE;
