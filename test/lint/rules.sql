-- rules.sql: what must not be found in what kavach has installed.
--
-- The kinds of faults that pgspot looks for in a script, looked for in the catalogs: there they
-- cannot hide in dynamic SQL. `make lint` prints the findings; test/pgtap/catalog.sql asserts that
-- there are none, and that each rule finds a fault of its kind. What the catalogs do not tell,
-- test/lint/run reads from the script's text.

-- What belongs to the extension.
CREATE TEMP VIEW member AS
SELECT d.classid, d.objid, pg_describe_object(d.classid, d.objid, 0) AS object
  FROM pg_extension e
  JOIN pg_depend d ON d.refclassid = 'pg_extension'::regclass AND d.refobjid = e.oid AND d.deptype = 'e'
 WHERE e.extname = 'kavach';

CREATE TEMP VIEW member_function AS
SELECT p.*, m.object
  FROM member m JOIN pg_proc p ON m.classid = 'pg_proc'::regclass AND p.oid = m.objid;

CREATE TEMP VIEW member_relation AS
SELECT c.*, m.object
  FROM member m JOIN pg_class c ON m.classid = 'pg_class'::regclass AND c.oid = m.objid;

-- What its parts are made of: rules of views, defaults, constraints, triggers, functions.
CREATE TEMP VIEW part AS
SELECT classid, objid, object FROM member WHERE classid = 'pg_proc'::regclass
 UNION ALL
SELECT 'pg_rewrite'::regclass, r.oid, c.object FROM pg_rewrite r JOIN member_relation c ON c.oid = r.ev_class
 UNION ALL
SELECT 'pg_attrdef'::regclass, a.oid, c.object FROM pg_attrdef a JOIN member_relation c ON c.oid = a.adrelid
 UNION ALL
SELECT 'pg_constraint'::regclass, n.oid, c.object FROM pg_constraint n JOIN member_relation c ON c.oid = n.conrelid
 UNION ALL
SELECT 'pg_trigger'::regclass, t.oid, c.object FROM pg_trigger t JOIN member_relation c ON c.oid = t.tgrelid;

CREATE TEMP VIEW finding (rule, object) AS
-- PS003 to PS005, PS018: in C every name is qualified (src/server/query.c pins the path as well), and what
-- was parsed at creation looks nothing up later
SELECT 'a function without a pinned search_path', f.object
  FROM member_function f JOIN pg_language l ON l.oid = f.prolang
 WHERE (f.prosecdef OR NOT (l.lanname = 'c' OR f.prosqlbody IS NOT NULL))
   AND NOT coalesce(f.proconfig, '{}') @> '{"search_path=pg_catalog, pg_temp"}'
 UNION ALL
-- PS001, PS016, PS017: operators, functions, types and relations of the server, or our own
SELECT 'something of somebody else''s is used', p.object || ' uses ' || pg_describe_object(d.refclassid, d.refobjid, d.refobjsubid)
  FROM part p
  JOIN pg_depend d ON d.classid = p.classid AND d.objid = p.objid AND d.deptype IN ('n', 'a', 'i')
 WHERE d.refobjid >= 16384
   AND d.refclassid NOT IN ('pg_namespace'::regclass, 'pg_constraint'::regclass)
   AND NOT EXISTS (SELECT FROM member m WHERE (m.classid, m.objid) = (d.refclassid, d.refobjid))
   AND NOT EXISTS (SELECT FROM member_relation c WHERE d.refclassid = 'pg_type'::regclass AND d.refobjid = c.reltype)
 UNION ALL
-- what a name without a schema ends in, as the script's search_path is pg_catalog
SELECT 'an object in the wrong schema', m.object
  FROM member m
  LEFT JOIN pg_proc f ON m.classid = 'pg_proc'::regclass AND f.oid = m.objid
  LEFT JOIN pg_class c ON m.classid = 'pg_class'::regclass AND c.oid = m.objid
 WHERE coalesce(f.pronamespace, c.relnamespace) <>
       CASE WHEN f.proname LIKE 'kavach\_%' THEN (SELECT extnamespace FROM pg_extension WHERE extname = 'kavach')
            ELSE 'kavach'::regnamespace END
 UNION ALL
SELECT 'a function that PUBLIC can execute', f.object
  FROM member_function f, aclexplode(coalesce(f.proacl, acldefault('f', f.proowner))) a
 WHERE a.grantee = 0
 UNION ALL
SELECT 'a relation or schema that PUBLIC has a right on', o.object
  FROM (SELECT object, relacl FROM member_relation
         UNION ALL
        SELECT object, attacl FROM member_relation c JOIN pg_attribute a ON a.attrelid = c.oid
         UNION ALL
        SELECT object, nspacl FROM member JOIN pg_namespace n ON classid = 'pg_namespace'::regclass AND n.oid = objid)
       AS o (object, acl),
       aclexplode(o.acl) a
 WHERE a.grantee = 0
 UNION ALL
-- ALTER SCHEMA ... RENAME changes no body
SELECT 'a body with the name of the extension''s schema', f.object
  FROM member_function f
  JOIN pg_extension e ON e.extname = 'kavach' AND e.extnamespace <> 'kavach'::regnamespace
 WHERE strpos(f.prosrc, e.extnamespace::regnamespace || '.') > 0
    OR strpos(f.prosrc, quote_literal(e.extnamespace::regnamespace)) > 0
 UNION ALL
-- types are those of the tables' and views' rows, indexes and constraints are parts of a table
SELECT 'an object without a comment', m.object
  FROM member m
 WHERE m.classid <> 'pg_type'::regclass
   AND obj_description(m.objid, m.classid::regclass::name) IS NULL
 UNION ALL
SELECT 'an object without a comment', pg_describe_object('pg_class'::regclass, c.oid, a.attnum)
  FROM member_relation c JOIN pg_attribute a ON a.attrelid = c.oid
 WHERE c.relkind <> 'S' AND a.attnum > 0 AND NOT a.attisdropped AND col_description(c.oid, a.attnum) IS NULL
 UNION ALL
SELECT 'an object without a comment', pg_describe_object('pg_trigger'::regclass, t.oid, 0)
  FROM member_relation c JOIN pg_trigger t ON t.tgrelid = c.oid
 WHERE NOT t.tgisinternal AND obj_description(t.oid, 'pg_trigger') IS NULL;
