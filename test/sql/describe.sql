-- describe.sql: the extension as psql describes it.
\a
\pset footer off
-- \dx and \dx+, as every version prints them.
SELECT extname, extversion, extnamespace::regnamespace, obj_description(oid, 'pg_extension')
  FROM pg_extension WHERE extname = 'kavach';
SELECT pg_describe_object(classid, objid, 0) COLLATE "C" AS member
  FROM pg_depend JOIN pg_extension e ON refclassid = 'pg_extension'::regclass AND refobjid = e.oid
 WHERE extname = 'kavach' AND deptype = 'e' AND classid <> 'pg_type'::regclass
 ORDER BY member;
\df kavach_*
\d kavach.ledger
\d kavach.agent
\d kavach.permission
\d kavach.budget_policy
\d kavach.budget_limit
\d kavach.budget_baseline
\d kavach.budget_status
