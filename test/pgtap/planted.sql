-- planted.sql: what is there before CREATE EXTENSION, in the schema of the verbs or as default privileges, and before a
-- month begins, has no say.
BEGIN;
SELECT plan(17);
SET LOCAL timezone = 'UTC';
SET LOCAL client_min_messages = error;
SET LOCAL kavach.clock = '2026-03-10 12:34:56+00';

CREATE ROLE kv_evil;
CREATE ROLE kv_reader;
CREATE SCHEMA api;
\ir traps.psql
SELECT kv_plant('api') > 2000;
DROP EXTENSION kavach;

-- overloads that fit the install script's own calls better than pg_catalog's do
CREATE FUNCTION api.format(text, text) RETURNS text LANGUAGE sql AS 'SELECT (1 / 0)::text';
CREATE FUNCTION api.format(text, text, text) RETURNS text LANGUAGE sql AS 'SELECT (1 / 0)::text';
CREATE FUNCTION api.format(text, regprocedure) RETURNS text LANGUAGE sql AS 'SELECT (1 / 0)::text';
CREATE FUNCTION api.format(text, regclass, name, text) RETURNS text LANGUAGE sql AS 'SELECT (1 / 0)::text';
-- and of what the verbs call in their own schema
CREATE FUNCTION api.kavach_grant_permission(text, text, text[], json DEFAULT NULL) RETURNS bigint LANGUAGE sql AS 'SELECT 1 / 0';
CREATE FUNCTION api.kavach_grant_permission(text, text, text[], VARIADIC jsonb[]) RETURNS bigint LANGUAGE sql AS 'SELECT 1 / 0';
CREATE FUNCTION api.kavach_grant_permission(VARIADIC "any") RETURNS bigint LANGUAGE internal AS 'pg_num_nulls';
CREATE FUNCTION api.kavach_export(text, text) RETURNS SETOF jsonb LANGUAGE sql AS 'SELECT NULL::jsonb WHERE 1 / 0 > 0';
CREATE FUNCTION api.kavach_authorize(text, text, text) RETURNS boolean LANGUAGE sql AS 'SELECT true';

ALTER DEFAULT PRIVILEGES GRANT ALL ON TABLES TO kv_evil, PUBLIC;
ALTER DEFAULT PRIVILEGES GRANT ALL ON SEQUENCES TO kv_evil, PUBLIC;
ALTER DEFAULT PRIVILEGES GRANT ALL ON FUNCTIONS TO kv_evil, PUBLIC;
ALTER DEFAULT PRIVILEGES GRANT ALL ON TYPES TO kv_evil, PUBLIC;
ALTER DEFAULT PRIVILEGES GRANT ALL ON SCHEMAS TO kv_evil, PUBLIC;
ALTER DEFAULT PRIVILEGES IN SCHEMA api GRANT ALL ON FUNCTIONS TO kv_evil, PUBLIC;
ALTER DEFAULT PRIVILEGES IN SCHEMA api GRANT ALL ON TABLES TO kv_evil, PUBLIC;

-- What would be in the way is an error, and not taken over.
CREATE SCHEMA kavach;
SELECT throws_ok('CREATE EXTENSION kavach SCHEMA api', '42P06', NULL, 'a schema of that name is not taken over');
DROP SCHEMA kavach;
CREATE FUNCTION api.kavach_billing_report(int, int) RETURNS int LANGUAGE sql AS 'SELECT 1';
SELECT throws_ok('CREATE EXTENSION kavach SCHEMA api', '42723', NULL, 'nor is a function');
DROP FUNCTION api.kavach_billing_report(int, int);
CREATE FUNCTION api.kavach_export(timestamptz, timestamptz, int DEFAULT 1) RETURNS SETOF jsonb LANGUAGE sql AS 'SELECT NULL::jsonb';
SELECT throws_ok('CREATE EXTENSION kavach SCHEMA api', '42725', NULL, 'nor called, where it would do as well as ours');
DROP FUNCTION api.kavach_export(timestamptz, timestamptz, int);

SET LOCAL search_path = api, pg_catalog;
CREATE EXTENSION kavach SCHEMA api;
SET LOCAL search_path = pg_catalog, public, pg_temp;

-- What somebody else than the owner has.
CREATE TEMP VIEW member AS
  SELECT classid, objid FROM pg_depend JOIN pg_extension e ON refclassid = 'pg_extension'::regclass AND refobjid = e.oid
   WHERE extname = 'kavach' AND deptype = 'e';
CREATE TEMP VIEW held AS
  SELECT privilege_type || ' on ' || object || ' by ' || grantee::regrole AS privilege
    FROM (SELECT p.oid::regprocedure::text, coalesce(proacl, acldefault('f', proowner)), proowner FROM member JOIN pg_proc p ON classid = 'pg_proc'::regclass AND objid = p.oid
           UNION ALL
          SELECT oid::regclass::text, relacl, relowner FROM pg_class WHERE relnamespace = 'kavach'::regnamespace
           UNION ALL
          SELECT 'schema kavach', nspacl, nspowner FROM pg_namespace WHERE nspname = 'kavach') AS o (object, acl, owner), aclexplode(acl)
   WHERE grantee <> owner AND grantee::regrole::text <> 'pg_monitor'; -- which is given what it watches
SELECT is(count(*) > 50, true, 'the extension is there') FROM member;
SELECT is(string_agg(privilege, ', '), NULL, 'default privileges give nobody anything') FROM held;
CREATE TABLE kavach.given ();
SELECT is(count(*) > 0, true, 'though they are in force') FROM held WHERE privilege LIKE '%kavach.given%';
DROP TABLE kavach.given;

-- It works, and by what is its own.
SELECT is(api.kavach_create_agent('agt_a', 'ann', permissions => '[{"resource": "*", "actions": ["run"]}]'), 'agt_a', 'create_agent');
SELECT is(resource, '*', 'has granted by kavach_grant_permission') FROM kavach.permission;
SELECT is(code, 'allowed', 'authorize') FROM api.kavach_authorize('agt_a', 'run', 'x', tokens_cost => 7);
SELECT is(e ->> 'tokens_cost', '7', 'export_json reads kavach_export') FROM api.kavach_export_json() AS e;
SELECT is(api.kavach_grant_role('kv_reader', 'reader'), true, 'grant_role');
SELECT is(has_function_privilege('kv_reader', 'api.kavach_export(timestamptz, timestamptz)', 'EXECUTE'), true, 'grants what is its own');
SELECT is(has_function_privilege('kv_reader', 'api.kavach_export(timestamptz, timestamptz)', 'EXECUTE WITH GRANT OPTION'), false, 'and not to pass on');
SELECT is(count(*), 0::bigint, 'nothing was written beside') FROM (TABLE api.agent) a FULL JOIN (TABLE api.permission) p USING (agent_id);

-- A month's partition is made by whoever calls, as the owner.
ALTER DEFAULT PRIVILEGES IN SCHEMA kavach GRANT ALL ON TABLES TO kv_evil, PUBLIC;
SET LOCAL kavach.clock = '2026-08-10 12:34:56+00';
SELECT is(code, 'allowed', 'a month begins') FROM api.kavach_authorize('agt_a', 'run', 'x', tokens_cost => 7);
SELECT is(to_regclass('kavach.audit_log_2026_08') IS NOT NULL, true, 'so its partition is there');
SELECT is(string_agg(privilege, ', '), NULL, 'and nobody''s') FROM held WHERE privilege NOT LIKE '% by kv_reader';

SELECT * FROM finish();
ROLLBACK;
