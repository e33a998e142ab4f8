-- kavach--0.1.0--0.2.0.sql
--   Takes an installation of 0.1.0 to 0.2.0; then it is what CREATE EXTENSION
--   would have made.  No row is touched.
--
-- What has other arguments or columns now is dropped and created, else it is
-- replaced: a function or view that is not the extension's makes that fail.  The
-- bodies are those of sql/*.sql as of 0.2.0, and are not changed any more once
-- that is out.
--
-- All that a script grants becomes an initial privilege, which a dump leaves to
-- CREATE EXTENSION (src/server/upgrade.c).  So it grants what the install script does,
-- and what roles had, or get, is granted past it.

\echo Use "ALTER EXTENSION kavach UPDATE TO '0.2.0'" to load this file. \quit

SET LOCAL search_path = pg_catalog, pg_temp;

-- ---- who may do what, before ----

CREATE FUNCTION kavach.grant_unrecorded(statement text)
RETURNS boolean
LANGUAGE c VOLATILE
AS 'MODULE_PATHNAME', 'kavach_grant_unrecorded';

CREATE FUNCTION kavach.former_member()
RETURNS TABLE (classid oid, oid oid, name text, kind text, owner oid, acl aclitem[])
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
  WITH member AS (
    SELECT d.classid, d.objid
      FROM pg_extension e
      JOIN pg_depend d ON d.refclassid = 'pg_extension'::regclass AND d.refobjid = e.oid AND d.deptype = 'e'
     WHERE e.extname = 'kavach')
  SELECT m.classid, p.oid, p.proname, 'FUNCTION', p.proowner, p.proacl
    FROM member m JOIN pg_proc p ON m.classid = 'pg_proc'::regclass AND m.objid = p.oid
   UNION ALL
  SELECT m.classid, c.oid, c.relname, 'TABLE', c.relowner, c.relacl
    FROM member m JOIN pg_class c ON m.classid = 'pg_class'::regclass AND m.objid = c.oid
   UNION ALL
  SELECT m.classid, n.oid, n.nspname, 'SCHEMA', n.nspowner, n.nspacl
    FROM member m JOIN pg_namespace n ON m.classid = 'pg_namespace'::regclass AND m.objid = n.oid
$$;

-- No members, or kavach_grant_role would have these to grant, too.
CREATE TABLE kavach.former AS
SELECT f.classid, f.oid, f.name, f.kind, f.owner, f.acl
  FROM kavach.former_member() f
 WHERE f.name NOT IN ('grant_unrecorded', 'former_member', 'former');

-- Reports read kavach.usage_part where they read kavach.ledger, and they and budget_status call more than range_start
-- and current_usage: that is what comes before those.
INSERT INTO kavach.former
SELECT f.classid, (array_agg(f.oid))[1], n.name, f.kind, f.owner, array_agg(a.item) FILTER (WHERE a.item IS NOT NULL)
  FROM kavach.former f
  LEFT JOIN LATERAL unnest(f.acl) AS a (item) ON true
  JOIN (VALUES ('TABLE', 'ledger', 'usage'), ('TABLE', 'ledger', 'usage_entry'), ('TABLE', 'ledger', 'usage_part'),
               ('FUNCTION', 'range_start', 'range_edge'), ('FUNCTION', 'range_start', 'uuid7_since'), ('FUNCTION', 'range_start', 'uuid7_until'),
               ('FUNCTION', 'range_start', 'usage_between'), ('FUNCTION', 'range_start', 'require_months'), ('FUNCTION', 'range_start', 'kept_since'),
               ('FUNCTION', 'range_start', 'no_rows'),
               ('FUNCTION', 'month_start', 'range_edge'), ('FUNCTION', 'month_start', 'uuid7_since'), ('FUNCTION', 'month_start', 'uuid7_until'),
               ('FUNCTION', 'month_start', 'usage_between'), ('FUNCTION', 'month_start', 'require_months'), ('FUNCTION', 'month_start', 'no_rows'),
               ('FUNCTION', 'kavach_query_audit', 'audit_limit'),
               ('FUNCTION', 'kavach_query_audit', 'is_page'), ('FUNCTION', 'kavach_query_audit', 'audit_page'),
               ('FUNCTION', 'current_usage', 'charged_at'), ('FUNCTION', 'current_usage', 'windows'),
               ('FUNCTION', 'current_usage', 'of_scope')) AS n (kind, former, name)
    ON (n.kind, n.former) = (f.kind, f.name)
 GROUP BY f.classid, n.name, f.kind, f.owner;

-- Constraints call functions: who writes these tables may execute them.
INSERT INTO kavach.former
SELECT 'pg_proc'::regclass, f.oid, n.name, 'FUNCTION', f.owner,
       nullif(ARRAY(SELECT makeaclitem(a.grantee, f.owner, 'EXECUTE', false)
                      FROM aclexplode(f.acl) a
                     WHERE a.privilege_type IN ('INSERT', 'UPDATE')), '{}')
  FROM kavach.former f
  JOIN (VALUES ('budget_policy', 'scope_has_id'), ('budget_limit', 'is_period')) AS n (former, name)
    ON f.kind = 'TABLE' AND f.name = n.former;

CREATE TABLE kavach.former_access (role regrole, access text);

ALTER EXTENSION kavach DROP TABLE kavach.former;
ALTER EXTENSION kavach DROP TABLE kavach.former_access;

-- The roles that kavach_grant_role would have nothing to grant to; what it does grant is undone.
DO $$
DECLARE
  candidate record;
BEGIN
  FOR candidate IN
    SELECT DISTINCT a.grantee::regrole AS role, w.access
      FROM kavach.former f
      JOIN (VALUES ('kavach_authorize', 'app'), ('kavach_query_audit', 'reader'), ('kavach_create_agent', 'admin')) AS w (name, access)
        ON f.kind = 'FUNCTION' AND f.name = w.name
     CROSS JOIN LATERAL aclexplode(f.acl) a
     WHERE a.grantee NOT IN (0, f.owner)
  LOOP
    BEGIN
      IF @extschema@.kavach_grant_role(candidate.role, candidate.access) THEN
        RAISE EXCEPTION USING ERRCODE = 'triggered_action_exception';
      END IF;
      INSERT INTO kavach.former_access VALUES (candidate.role, candidate.access);
    EXCEPTION WHEN triggered_action_exception THEN
      NULL;
    END;
  END LOOP;
END
$$;

-- ---- what has another signature now ----

DROP FUNCTION @extschema@.kavach_create_agent(text, text, text, text, jsonb, timestamptz, jsonb);
DROP FUNCTION kavach.grant_permissions(text, jsonb);
DROP FUNCTION @extschema@.kavach_create_policy(text, text, text, text, boolean, jsonb, text);
DROP FUNCTION @extschema@.kavach_authorize(text, text, text, bigint, jsonb, inet, text, jsonb, bigint);
DROP FUNCTION @extschema@.kavach_check_budget(text, bigint);
DROP FUNCTION @extschema@.kavach_adjust(text, bigint, text);
DROP EVENT TRIGGER kavach_guard_ledger;

-- ---- schema.sql ----

-- What scopes, measures and windows there are, and what they are called, is in C (scopes[], measures[], periods[]).
-- These tell it.

CREATE FUNCTION kavach.scope_has_id(scope text)
RETURNS boolean
LANGUAGE c IMMUTABLE STRICT PARALLEL SAFE
AS 'MODULE_PATHNAME', 'kavach_scope_has_id';

COMMENT ON FUNCTION kavach.scope_has_id(text) IS
  'Whether the subjects of a budget''s scope have ids, or it is one pool; NULL where it is no scope.';

CREATE FUNCTION kavach.of_scope(scope text, agent_id text, user_id text, tenant_id text)
RETURNS text
LANGUAGE c IMMUTABLE PARALLEL SAFE COST 2
AS 'MODULE_PATHNAME', 'kavach_of_scope';

COMMENT ON FUNCTION kavach.of_scope(text, text, text, text) IS
  'The one of these that belongs to the scope; NULL of a scope that has no ids.';

CREATE FUNCTION kavach.policy_scope(agent_id text, user_id text, tenant_id text, "each" text, all_agents boolean)
RETURNS text
LANGUAGE c IMMUTABLE PARALLEL SAFE
AS 'MODULE_PATHNAME', 'kavach_policy_scope';

COMMENT ON FUNCTION kavach.policy_scope(text, text, text, text, boolean) IS
  'The scope of a policy that is for one of these. Errors: 22023 none or several are given, or each is no scope that has ids.';

CREATE FUNCTION kavach.limit_keys(OUT key text, OUT measure text, OUT period text)
RETURNS SETOF record
LANGUAGE c IMMUTABLE PARALLEL SAFE ROWS 8
AS 'MODULE_PATHNAME', 'kavach_limit_keys';

COMMENT ON FUNCTION kavach.limit_keys() IS
  'What limits there can be: max_tokens_cost_per_hour and so on, as kavach_create_policy takes them and as kavach.budget_limit has them.';

CREATE FUNCTION kavach.is_period(period text)
RETURNS boolean
LANGUAGE c IMMUTABLE STRICT PARALLEL SAFE
AS 'MODULE_PATHNAME', 'kavach_is_period';

COMMENT ON FUNCTION kavach.is_period(text) IS
  'Whether limits can have this window.';

CREATE FUNCTION kavach.windows(ts timestamptz, OUT period text, OUT period_start timestamptz, OUT period_end timestamptz)
RETURNS SETOF record
LANGUAGE c IMMUTABLE STRICT PARALLEL SAFE ROWS 4
AS 'MODULE_PATHNAME', 'kavach_windows';

COMMENT ON FUNCTION kavach.windows(timestamptz) IS
  'The windows of limits that an instant is in, shortest first, [period_start, period_end) in UTC: the last one from -infinity to NULL.';

CREATE FUNCTION kavach.range_edge(since timestamptz, until timestamptz, whole text, edge int)
RETURNS timestamptz
LANGUAGE c IMMUTABLE PARALLEL SAFE
AS 'MODULE_PATHNAME', 'kavach_range_edge';

COMMENT ON FUNCTION kavach.range_edge(timestamptz, timestamptz, text, int) IS
  'Where a range is cut: its whole UTC days are from edge 0 to edge 3, the whole months among them from edge 1 to edge 2. whole: monthly; daily or together, of months there are none; NULL: of days neither. What there is none of is empty, at the range''s end.';

CREATE FUNCTION kavach.uuid7_since(ts timestamptz, whole_month boolean DEFAULT false)
RETURNS uuid
LANGUAGE c IMMUTABLE PARALLEL SAFE
AS 'MODULE_PATHNAME', 'kavach_uuid7_since';

COMMENT ON FUNCTION kavach.uuid7_since(timestamptz, boolean) IS
  'The least id that a row from this time on can have; whole_month: from the start of its UTC month on.';

CREATE FUNCTION kavach.uuid7_until(ts timestamptz, whole_month boolean DEFAULT false)
RETURNS uuid
LANGUAGE c IMMUTABLE PARALLEL SAFE
AS 'MODULE_PATHNAME', 'kavach_uuid7_until';

COMMENT ON FUNCTION kavach.uuid7_until(timestamptz, boolean) IS
  'The least id that no row before this time can have; whole_month: before the end of the UTC month that the last instant before it is in.';

-- ---- agent.sql ----

CREATE OR REPLACE FUNCTION kavach.check_agent(agent_id text)
RETURNS boolean
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
  PERFORM kavach.check_id(agent_id, 'agent_id');
  -- kept until the end of the transaction: what is granted meanwhile must not outlive the agent
  PERFORM FROM kavach.agent a WHERE a.agent_id = check_agent.agent_id FOR NO KEY UPDATE;
  IF NOT FOUND THEN
    RAISE EXCEPTION 'agent "%" does not exist', agent_id
      USING ERRCODE = 'undefined_object',
            HINT = 'Create it with kavach_create_agent().';
  END IF;
  RETURN true;
END
$$;

COMMENT ON FUNCTION kavach.check_agent(text) IS
  'Raises an error unless the agent exists, and locks it against changes and removal. Errors: those of kavach.check_id, 42704 for an unknown agent.';

-- What names an agent goes with it, or the next one of that id would inherit permissions and budgets. Also where
-- rows are deleted by hand, and on a subscriber, whose own deletes find nothing left.
CREATE FUNCTION kavach.forget_agent(agent_id text)
RETURNS boolean
LANGUAGE c VOLATILE
AS 'MODULE_PATHNAME', 'kavach_forget_agent';

COMMENT ON FUNCTION kavach.forget_agent(text) IS
  'Removes the permissions of an agent, the budgets that name it, and what was forgiven to it.';

CREATE FUNCTION kavach.agent_gone()
RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
  IF TG_RELID <> 'kavach.agent'::regclass THEN
    RAISE EXCEPTION 'kavach.agent_gone() must be called for kavach.agent'
      USING ERRCODE = 'trigger_protocol_violated';
  END IF;
  IF TG_OP = 'TRUNCATE' THEN
    PERFORM kavach.forget_agent(o.agent_id)
       FROM (SELECT p.agent_id FROM kavach.permission p
              UNION SELECT kavach.of_scope(p.scope, p.subject, NULL, NULL) FROM kavach.budget_policy p
              UNION SELECT kavach.of_scope(p.scope, b.subject, NULL, NULL)
                      FROM kavach.budget_baseline b JOIN kavach.budget_policy p USING (policy_id)) AS o (agent_id)
      WHERE o.agent_id IS NOT NULL
        AND NOT EXISTS (SELECT FROM kavach.agent a WHERE a.agent_id = o.agent_id);
  ELSE
    PERFORM kavach.forget_agent(OLD.agent_id);
  END IF;
  RETURN NULL;
END
$$;

COMMENT ON FUNCTION kavach.agent_gone() IS
  'Trigger: permissions, and budgets that name the agent, go with it; the ledger stays.';

CREATE TRIGGER forget_agent AFTER DELETE ON kavach.agent
  FOR EACH ROW EXECUTE FUNCTION kavach.agent_gone();
CREATE TRIGGER forget_renamed_agent AFTER UPDATE OF agent_id ON kavach.agent
  FOR EACH ROW WHEN (OLD.agent_id <> NEW.agent_id) EXECUTE FUNCTION kavach.agent_gone();
CREATE TRIGGER forget_all_agents AFTER TRUNCATE ON kavach.agent
  FOR EACH STATEMENT EXECUTE FUNCTION kavach.agent_gone();
ALTER TABLE kavach.agent ENABLE ALWAYS TRIGGER forget_agent;
ALTER TABLE kavach.agent ENABLE ALWAYS TRIGGER forget_renamed_agent;
ALTER TABLE kavach.agent ENABLE ALWAYS TRIGGER forget_all_agents;
COMMENT ON TRIGGER forget_agent ON kavach.agent IS 'Permissions, and budgets that name the agent, go with it.';
COMMENT ON TRIGGER forget_renamed_agent ON kavach.agent IS 'They stay with no other one either.';
COMMENT ON TRIGGER forget_all_agents ON kavach.agent IS 'And with all of them, all go.';

CREATE FUNCTION @extschema@.kavach_create_agent(
  agent_id    text DEFAULT NULL,
  user_id     text DEFAULT NULL,
  tenant_id   text DEFAULT NULL,
  name        text DEFAULT NULL,
  permissions jsonb DEFAULT NULL,
  expires_at  timestamptz DEFAULT NULL,
  metadata    jsonb DEFAULT '{}',
  replace     boolean DEFAULT false)
RETURNS text
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
  new_id text := coalesce(agent_id, 'agt_' || pg_catalog.replace(gen_random_uuid()::text, '-', ''));
  created boolean;
  changed boolean := false;
BEGIN
  PERFORM kavach.check_id(new_id, 'agent_id'),
          kavach.check_id(user_id, 'user_id'),
          kavach.check_id(tenant_id, 'tenant_id', required => false),
          kavach.check_id(name, 'name', required => false);
  IF replace AND agent_id IS NULL THEN
    RAISE EXCEPTION 'replace needs an agent_id'
      USING ERRCODE = 'invalid_parameter_value',
            HINT = 'Give the id of the agent to replace, as it would be another one each time.';
  END IF;

  LOOP
    INSERT INTO kavach.agent (agent_id, user_id, tenant_id, name, expires_at, metadata)
    VALUES (new_id, user_id, tenant_id, name, expires_at, kavach.check_object(metadata, 'metadata'))
    ON CONFLICT ON CONSTRAINT agent_pkey DO NOTHING;
    created := FOUND;
    EXIT WHEN created;
    IF NOT coalesce(replace, false) THEN
      RAISE EXCEPTION 'agent "%" already exists', new_id
        USING ERRCODE = 'unique_violation',
              HINT = 'Change it with kavach_update_agent() or replace => true, or leave agent_id out to have one made.';
    END IF;
    PERFORM FROM kavach.agent a WHERE a.agent_id = new_id FOR NO KEY UPDATE;
    EXIT WHEN FOUND;
    -- dropped meanwhile: it is to be created after all
  END LOOP;

  IF created THEN
    PERFORM kavach.forget_agent(new_id);
  ELSE
    UPDATE kavach.agent a
       SET user_id = kavach_create_agent.user_id, tenant_id = kavach_create_agent.tenant_id, name = kavach_create_agent.name,
           expires_at = kavach_create_agent.expires_at, metadata = kavach.check_object(kavach_create_agent.metadata, 'metadata')
     WHERE a.agent_id = new_id
       AND (a.user_id, a.tenant_id, a.name, a.expires_at, a.metadata) IS DISTINCT FROM
           (kavach_create_agent.user_id, kavach_create_agent.tenant_id, kavach_create_agent.name,
            kavach_create_agent.expires_at, kavach.check_object(kavach_create_agent.metadata, 'metadata'));
    changed := FOUND;
  END IF;

  IF permissions IS NOT NULL THEN
    changed := kavach.set_permissions(new_id, permissions) OR changed;
  END IF;
  IF replace THEN
    RAISE NOTICE 'agent "%" %', new_id, CASE WHEN created THEN 'created' WHEN changed THEN 'replaced' ELSE 'unchanged' END;
  END IF;
  RETURN new_id;
END
$$;

COMMENT ON FUNCTION @extschema@.kavach_create_agent(text, text, text, text, jsonb, timestamptz, jsonb, boolean) IS
'Creates an agent and returns its id.
agent_id: NULL makes one (agt_...); user_id: required, its owner; tenant_id, name: optional;
permissions: [{"resource": ..., "actions": [...], "constraints": {...}}], as for kavach_grant_permission;
expires_at: from then on its calls are refused; metadata: a JSON object;
replace: an agent of that id that is there gets these values, and exactly these permissions, where they are given: those that stay keep their id, and a revoked agent stays revoked. A NOTICE says whether it was created, replaced or unchanged.
Errors: 22004, 22023, 22001 bad input; 23505 the id is taken.';

CREATE FUNCTION @extschema@.kavach_drop_agent(agent_id text)
RETURNS boolean
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
#variable_conflict use_column
BEGIN
  PERFORM kavach.check_id(kavach_drop_agent.agent_id, 'agent_id');
  DELETE FROM kavach.agent a WHERE a.agent_id = kavach_drop_agent.agent_id;
  RETURN FOUND;
END
$$;

COMMENT ON FUNCTION @extschema@.kavach_drop_agent(text) IS
'Drops an agent with its permissions and the budgets that name it: true if it was there. Later calls are refused with agent_not_found.
The ledger stays, bills too, and what the agent has left open can still be settled. An agent created later with this id starts without permissions and budgets of its own; what the ledger holds of the id counts as its usage.
Errors: 22004, 22023, 22001 bad input.';

-- ---- permission.sql ----

-- In the latest snapshot, these three: in that of a transaction that began before, a grant would not be found.
CREATE FUNCTION kavach.permissions_of(agent_id text)
RETURNS bigint[]
LANGUAGE c VOLATILE STRICT
AS 'MODULE_PATHNAME', 'kavach_permissions_of';

COMMENT ON FUNCTION kavach.permissions_of(text) IS
  'The ids of the agent''s permissions.';

CREATE FUNCTION kavach.find_permission(agent_id text, resource text, actions text[], constraints jsonb)
RETURNS bigint
LANGUAGE c VOLATILE STRICT
AS 'MODULE_PATHNAME', 'kavach_find_permission';

COMMENT ON FUNCTION kavach.find_permission(text, text, text[], jsonb) IS
  'The id of the agent''s permission of just this resource, these actions in any order and these constraints; NULL if there is none.';

CREATE FUNCTION kavach.keep_permissions(agent_id text, permission_ids bigint[])
RETURNS boolean
LANGUAGE c VOLATILE STRICT
AS 'MODULE_PATHNAME', 'kavach_keep_permissions';

COMMENT ON FUNCTION kavach.keep_permissions(text, bigint[]) IS
  'Takes away what else the agent may do: true if there was any.';

CREATE OR REPLACE FUNCTION @extschema@.kavach_grant_permission(
  agent_id    text,
  resource    text,
  actions     text[],
  constraints jsonb DEFAULT '{}')
RETURNS bigint
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
#variable_conflict use_variable
DECLARE
  new_id bigint;
BEGIN
  PERFORM kavach.check_agent(agent_id),
          kavach.check_permission(resource, actions, constraints);
  new_id := kavach.find_permission(agent_id, resource, actions, constraints);
  IF new_id IS NOT NULL THEN
    RETURN new_id;
  END IF;
  INSERT INTO kavach.permission (agent_id, resource, actions, constraints)
  VALUES (agent_id, resource, actions, constraints)
  RETURNING permission_id INTO new_id;
  RETURN new_id;
END
$$;

COMMENT ON FUNCTION @extschema@.kavach_grant_permission(text, text, text[], jsonb) IS
'Grants a permission and returns its id; that of the one which is there, where the agent has just this one already.
resource: a colon-separated pattern; a segment is literal or * (exactly one segment), a trailing ** stands for one or more, * alone for everything;
actions: names, or * for any;
constraints: {"max_calls_per_hour": n, "allowed_arg_patterns": [glob, ...], "time_window": {"start": "HH:MM", "end": "HH:MM"} (UTC, may cross midnight), "ip_allowlist": [CIDR, ...]}.
Errors: 22004, 22023, 22001, 22P02 bad input; 42704 unknown agent.';

CREATE FUNCTION @extschema@.kavach_update_permission(permission_id bigint, changes jsonb)
RETURNS boolean
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
#variable_conflict use_column
DECLARE
  old kavach.permission;
  new kavach.permission;
  same bigint;
  key text;
BEGIN
  IF kavach_update_permission.permission_id IS NULL OR changes IS NULL THEN
    RAISE EXCEPTION '% must not be NULL', CASE WHEN changes IS NULL THEN 'changes' ELSE 'permission_id' END
      USING ERRCODE = 'null_value_not_allowed';
  END IF;
  PERFORM kavach.check_object(changes, 'changes');
  -- as a grant does: one change of an agent's permissions at a time
  PERFORM kavach.check_agent(p.agent_id) FROM kavach.permission p WHERE p.permission_id = kavach_update_permission.permission_id;
  SELECT * INTO old FROM kavach.permission p WHERE p.permission_id = kavach_update_permission.permission_id FOR UPDATE;
  IF NOT FOUND THEN
    RAISE EXCEPTION 'permission % does not exist', kavach_update_permission.permission_id
      USING ERRCODE = 'undefined_object',
            HINT = 'kavach.permissions lists the permissions.';
  END IF;

  FOR key IN SELECT * FROM jsonb_object_keys(changes) LOOP
    IF key NOT IN ('resource', 'actions', 'constraints') THEN
      RAISE EXCEPTION 'unrecognized change "%"', key
        USING ERRCODE = 'invalid_parameter_value',
              DETAIL = 'What can be changed is resource, actions and constraints.';
    END IF;
  END LOOP;
  new := old;
  IF changes ? 'resource' THEN
    IF jsonb_typeof(changes -> 'resource') NOT IN ('string', 'null') THEN
      RAISE EXCEPTION 'resource must be a string'
        USING ERRCODE = 'invalid_parameter_value';
    END IF;
    new.resource := changes ->> 'resource';
  END IF;
  IF changes ? 'actions' THEN
    IF jsonb_typeof(changes -> 'actions') <> 'array'
       OR jsonb_path_exists(changes, 'strict $.actions[*] ? (@.type() != "string")') THEN
      RAISE EXCEPTION 'actions must be a list of strings'
        USING ERRCODE = 'invalid_parameter_value';
    END IF;
    new.actions := ARRAY(SELECT jsonb_array_elements_text(changes -> 'actions'));
  END IF;
  IF changes ? 'constraints' THEN
    new.constraints := kavach.check_object(nullif(changes -> 'constraints', 'null'), 'constraints');
  END IF;
  PERFORM kavach.check_permission(new.resource, new.actions, new.constraints);
  same := kavach.find_permission(old.agent_id, new.resource, new.actions, new.constraints);
  IF same <> old.permission_id THEN
    RAISE EXCEPTION 'permission % would be the same as permission %', old.permission_id, same
      USING ERRCODE = 'unique_violation',
            DETAIL = 'Two of the same would admit what both rates have room for.',
            HINT = format('SELECT kavach_revoke_permission(%s) takes one of them away.', old.permission_id);
  END IF;

  UPDATE kavach.permission p
     SET (resource, actions, constraints) = (SELECT new.resource, new.actions, new.constraints)
   WHERE p.permission_id = old.permission_id AND old IS DISTINCT FROM new;
  RETURN FOUND;
END
$$;

COMMENT ON FUNCTION @extschema@.kavach_update_permission(bigint, jsonb) IS
'Changes a permission, which keeps its id and what its rate per hour has counted: true if something changed.
changes: a JSON object with resource, actions or constraints, each as for kavach_grant_permission and replaced as a whole; constraints may be null: none.
Errors: 22004, 22023, 22001, 22P02 bad input; 23505 the agent has another one that is just so; 42704 unknown permission.';

CREATE FUNCTION kavach.grant_permission(agent_id text, resource text, actions text[], constraints jsonb)
RETURNS bigint
LANGUAGE sql
BEGIN ATOMIC
  SELECT @extschema@.kavach_grant_permission(agent_id, resource, actions, constraints);
END;

COMMENT ON FUNCTION kavach.grant_permission(text, text, text[], jsonb) IS
  'kavach_grant_permission, for bodies: whatever the schema that it is in is called by now.';

CREATE FUNCTION kavach.grant_permissions(agent_id text, permissions jsonb)
RETURNS bigint[]
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
  permission jsonb;
  key text;
  granted bigint[] := ARRAY[]::bigint[];
BEGIN
  IF jsonb_typeof(permissions) <> 'array' THEN
    RAISE EXCEPTION 'permissions must be a JSON array'
      USING ERRCODE = 'invalid_parameter_value',
            HINT = 'Write [{"resource": ..., "actions": [...], "constraints": {...}}].';
  END IF;

  FOR permission IN SELECT * FROM jsonb_array_elements(permissions) LOOP
    IF jsonb_typeof(permission) <> 'object'
       OR jsonb_typeof(permission -> 'resource') IS DISTINCT FROM 'string'
       OR jsonb_typeof(permission -> 'actions') IS DISTINCT FROM 'array'
       OR jsonb_path_exists(permission, 'strict $.actions[*] ? (@.type() != "string")') THEN
      RAISE EXCEPTION 'a permission needs a resource and a list of actions'
        USING ERRCODE = 'invalid_parameter_value',
              DETAIL = format('It reads %s.', permission),
              HINT = 'Write {"resource": "mcp:openai:*", "actions": ["execute"], "constraints": {}}.';
    END IF;
    FOR key IN SELECT * FROM jsonb_object_keys(permission) LOOP
      IF key NOT IN ('resource', 'actions', 'constraints') THEN
        RAISE EXCEPTION 'unrecognized key "%" in a permission', key
          USING ERRCODE = 'invalid_parameter_value',
                DETAIL = 'A permission has resource, actions and constraints.';
      END IF;
    END LOOP;
    granted := granted || kavach.grant_permission(
      agent_id,
      permission ->> 'resource',
      ARRAY(SELECT jsonb_array_elements_text(permission -> 'actions')),
      coalesce(permission -> 'constraints', '{}'));
  END LOOP;
  RETURN granted;
END
$$;

COMMENT ON FUNCTION kavach.grant_permissions(text, jsonb) IS
  'Grants the permissions of kavach_create_agent and returns their ids. Errors: 22023 malformed, and those of kavach_grant_permission.';

CREATE FUNCTION kavach.set_permissions(agent_id text, permissions jsonb)
RETURNS boolean
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
  before bigint[] := kavach.permissions_of(agent_id);
  granted bigint[] := kavach.grant_permissions(agent_id, permissions);
BEGIN
  RETURN kavach.keep_permissions(agent_id, granted) OR NOT granted <@ before;
END
$$;

COMMENT ON FUNCTION kavach.set_permissions(text, jsonb) IS
  'Makes these the agent''s permissions, and no others: true if something changed. Those that stay keep their ids. Errors: those of kavach.grant_permissions.';

-- ---- ledger.sql ----

CREATE FUNCTION kavach.charged_at(ts timestamptz, tokens_cost bigint, settles uuid)
RETURNS timestamptz
LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN CASE WHEN settles IS NOT NULL AND tokens_cost < 0 THEN least(ts, kavach.uuid7_ts(settles)) ELSE ts END;

COMMENT ON FUNCTION kavach.charged_at(timestamptz, bigint, uuid) IS
  'The time in whose windows a ledger row counts against limits: its ts, but what a settlement gives back counts in those of the authorization that it settles. Bills and reports go by ts.';

COMMENT ON FUNCTION kavach.guard_ledger() IS
  'Event trigger: the ledger''s tables are not dropped or detached while it holds rows, and what kavach has made is not altered so that a dump lacks it. Error 42501, unless kavach.allow_drop or kavach.allow_alter is on.';

-- Whatever may drop the ledger, by CASCADE too, or alter what kavach has made: src/ledger/guard.c has how.
CREATE EVENT TRIGGER kavach_guard_ledger ON ddl_command_start
  WHEN TAG IN ('ALTER EXTENSION', 'ALTER FUNCTION', 'ALTER INDEX', 'ALTER POLICY', 'ALTER ROUTINE', 'ALTER RULE',
               'ALTER SCHEMA', 'ALTER SEQUENCE', 'ALTER TABLE', 'ALTER TRIGGER', 'ALTER VIEW',
               'CREATE INDEX', 'CREATE POLICY', 'CREATE RULE', 'CREATE STATISTICS', 'CREATE TRIGGER',
               'DROP ACCESS METHOD', 'DROP COLLATION', 'DROP DOMAIN', 'DROP EXTENSION',
               'DROP FOREIGN DATA WRAPPER', 'DROP FOREIGN TABLE', 'DROP FUNCTION', 'DROP INDEX', 'DROP LANGUAGE',
               'DROP MATERIALIZED VIEW', 'DROP OWNED', 'DROP ROUTINE', 'DROP SCHEMA', 'DROP SEQUENCE', 'DROP SERVER',
               'DROP TABLE', 'DROP TRIGGER', 'DROP TYPE', 'DROP VIEW')
  EXECUTE FUNCTION kavach.guard_ledger();
ALTER EVENT TRIGGER kavach_guard_ledger ENABLE ALWAYS;

COMMENT ON EVENT TRIGGER kavach_guard_ledger IS 'Keeps the ledger''s tables from being dropped or detached while it holds rows, and what kavach has made as a dump has it.';

CREATE FUNCTION @extschema@.kavach_create_months(first date, last date)
RETURNS int
LANGUAGE c VOLATILE
AS 'MODULE_PATHNAME', 'kavach_create_months';

COMMENT ON FUNCTION @extschema@.kavach_create_months(date, date) IS
'Makes the partitions of the ledger''s UTC months from that of one date to that of another, as far as they are missing, and returns how many. Calls make their own; needed before rows come by logical replication, or are put in by hand.
first, last: any day of the first and of the last month, at most 240 months.
Errors: 22004 NULL; 22008 before 1970 or after 9999; 22023 first after last; 54000 too many; 42P17 where a partition of other bounds is in a month; 25006 read-only.';

COMMENT ON COLUMN kavach.audit_log.batch IS 'The batch that the row belongs to; 0 of rows from before there were any.';
COMMENT ON COLUMN kavach.ledger.batch IS 'The batch that the row belongs to; 0 of rows from before there were any.';

-- ---- batch.sql ----

CREATE SEQUENCE kavach.batch_number;

SELECT pg_catalog.pg_extension_config_dump('kavach.batch_number', '');

COMMENT ON SEQUENCE kavach.batch_number IS 'Numbers of batches; gaps mean nothing.';

CREATE FUNCTION kavach.current_batch()
RETURNS bigint
LANGUAGE c VOLATILE
AS 'MODULE_PATHNAME', 'kavach_current_batch';

COMMENT ON FUNCTION kavach.current_batch() IS
  'The number of the batch that is open now, which stays open until this (sub)transaction ends. The default of kavach.audit_log.batch: rows that are put in by hand register as calls do.';

ALTER TABLE kavach.audit_log ALTER batch SET DEFAULT kavach.current_batch();

CREATE TABLE kavach.tail (
  singleton boolean PRIMARY KEY DEFAULT true CHECK (singleton),
  high bigint NOT NULL,
  open bigint[] NOT NULL
);

SELECT pg_catalog.pg_extension_config_dump('kavach.tail', '');

COMMENT ON TABLE kavach.tail IS 'One row: which batches are not in the rollups yet. Without it, none is.';
COMMENT ON COLUMN kavach.tail.singleton IS 'There is one row only.';
COMMENT ON COLUMN kavach.tail.high IS 'No batch beyond this one is in the rollups.';
COMMENT ON COLUMN kavach.tail.open IS 'Nor are these, before it.';

CREATE TABLE kavach.batch (
  batch       bigint NOT NULL,
  month       date NOT NULL,
  rows        bigint NOT NULL,
  calls       bigint NOT NULL,
  tokens_cost numeric NOT NULL,
  first_ts    timestamptz NOT NULL,
  last_ts     timestamptz NOT NULL,
  closed_at   timestamptz NOT NULL,
  seal_no     bigint NOT NULL UNIQUE,
  seal        bytea,
  PRIMARY KEY (batch, month)
);

SELECT pg_catalog.pg_extension_config_dump('kavach.batch', '');

COMMENT ON TABLE kavach.batch IS 'Closed batches, a row for each month that they have rows in.';
COMMENT ON COLUMN kavach.batch.batch IS 'The number that its rows in kavach.audit_log have.';
COMMENT ON COLUMN kavach.batch.month IS 'The UTC month of the rows, its first day.';
COMMENT ON COLUMN kavach.batch.rows IS 'How many rows there are.';
COMMENT ON COLUMN kavach.batch.calls IS 'How many of them are authorize decisions.';
COMMENT ON COLUMN kavach.batch.tokens_cost IS 'sum(tokens_cost) over them.';
COMMENT ON COLUMN kavach.batch.first_ts IS 'The ts of the earliest.';
COMMENT ON COLUMN kavach.batch.last_ts IS 'The ts of the latest.';
COMMENT ON COLUMN kavach.batch.closed_at IS 'When it was closed.';
COMMENT ON COLUMN kavach.batch.seal_no IS 'The order of closing, without gaps: who has seen one has seen all before it.';
COMMENT ON COLUMN kavach.batch.seal IS 'Reserved.';

-- NULLs are alike: of an unknown agent, a user without tenant, a call whose model is not known.

CREATE TABLE kavach.usage_daily (
  day                date NOT NULL,
  tenant_id          text,
  user_id            text,
  agent_id           text,
  provider           text,
  model              text,
  calls              bigint NOT NULL,
  denied             bigint NOT NULL,
  calls_without_cost bigint NOT NULL,
  tokens_cost        numeric NOT NULL,
  tokens_input       numeric NOT NULL,
  tokens_output      numeric NOT NULL,
  tokens_cache_read  numeric NOT NULL,
  tokens_cache_write numeric NOT NULL,
  cost               numeric NOT NULL,
  UNIQUE NULLS NOT DISTINCT (agent_id, day, user_id, tenant_id, provider, model)
) WITH (fillfactor = 70);

CREATE TABLE kavach.usage_monthly (
  month              date NOT NULL,
  tenant_id          text,
  user_id            text,
  agent_id           text,
  provider           text,
  model              text,
  calls              bigint NOT NULL,
  denied             bigint NOT NULL,
  calls_without_cost bigint NOT NULL,
  tokens_cost        numeric NOT NULL,
  tokens_input       numeric NOT NULL,
  tokens_output      numeric NOT NULL,
  tokens_cache_read  numeric NOT NULL,
  tokens_cache_write numeric NOT NULL,
  cost               numeric NOT NULL,
  UNIQUE NULLS NOT DISTINCT (agent_id, month, user_id, tenant_id, provider, model)
) WITH (fillfactor = 70);

CREATE TABLE kavach.usage_total (
  day                date PRIMARY KEY,
  calls              bigint NOT NULL,
  denied             bigint NOT NULL,
  calls_without_cost bigint NOT NULL,
  tokens_cost        numeric NOT NULL,
  tokens_input       numeric NOT NULL,
  tokens_output      numeric NOT NULL,
  tokens_cache_read  numeric NOT NULL,
  tokens_cache_write numeric NOT NULL,
  cost               numeric NOT NULL
) WITH (fillfactor = 70);

CREATE INDEX usage_daily_day_idx ON kavach.usage_daily (day);
CREATE INDEX usage_daily_user_id_day_idx ON kavach.usage_daily (user_id, day);
CREATE INDEX usage_daily_tenant_id_day_idx ON kavach.usage_daily (tenant_id, day);
CREATE INDEX usage_monthly_month_idx ON kavach.usage_monthly (month);

SELECT pg_catalog.pg_extension_config_dump('kavach.usage_daily', '');
SELECT pg_catalog.pg_extension_config_dump('kavach.usage_monthly', '');
SELECT pg_catalog.pg_extension_config_dump('kavach.usage_total', '');

COMMENT ON TABLE kavach.usage_daily IS 'What closed batches add up to, by UTC day.';
COMMENT ON TABLE kavach.usage_monthly IS 'What closed batches add up to, by UTC month.';
COMMENT ON TABLE kavach.usage_total IS 'What closed batches add up to, by UTC day, all agents together.';
COMMENT ON COLUMN kavach.usage_daily.day IS 'The UTC day of the rows.';
COMMENT ON COLUMN kavach.usage_monthly.month IS 'The UTC month of the rows, its first day.';
COMMENT ON COLUMN kavach.usage_total.day IS 'The UTC day of the rows.';

DO $$
DECLARE
  c record;
BEGIN
  FOR c IN
    SELECT t.name AS relation, v.name, v.text
      FROM (VALUES ('usage_daily'), ('usage_monthly'), ('usage_total')) AS t (name),
           (VALUES ('tenant_id', 'The agent''s tenant at that time.'),
                   ('user_id', 'The agent''s owner at that time; NULL for unknown agents.'),
                   ('agent_id', 'Who called; NULL for unknown agents, all of them.'),
                   ('provider', 'Who served the calls; NULL: not known, or not settled.'),
                   ('model', 'The model that served them; NULL: not known, or not settled.'),
                   ('calls', 'Authorize decisions.'),
                   ('denied', 'Those refused.'),
                   ('calls_without_cost', 'Those admitted that gave no cost.'),
                   ('tokens_cost', 'sum(tokens_cost) over the rows. What a settlement replaces was charged without a model.'),
                   ('tokens_input', 'Input tokens, as far as known.'),
                   ('tokens_output', 'Output tokens, as far as known.'),
                   ('tokens_cache_read', 'Tokens read from a cache, as far as known.'),
                   ('tokens_cache_write', 'Tokens written to a cache, as far as known.'),
                   ('cost', 'The price of it, as far as known.')) AS v (name, text)
     WHERE EXISTS (SELECT FROM pg_attribute a WHERE a.attrelid = ('kavach.' || t.name)::regclass AND a.attname = v.name)
  LOOP
    EXECUTE format('COMMENT ON COLUMN kavach.%I.%I IS %L', c.relation, c.name, c.text);
  END LOOP;
END
$$;

CREATE TABLE kavach.usage_scope (
  scope   text NOT NULL,
  subject text NOT NULL,
  period  text NOT NULL,
  start   timestamptz NOT NULL,
  tokens  numeric NOT NULL,
  calls   bigint NOT NULL,
  PRIMARY KEY (scope, subject, period, start)
) WITH (fillfactor = 70);

-- the subjects that have a window
CREATE INDEX usage_scope_window_idx ON kavach.usage_scope (scope, period, start);

SELECT pg_catalog.pg_extension_config_dump('kavach.usage_scope', '');

COMMENT ON TABLE kavach.usage_scope IS 'What closed batches add up to in the windows of limits: what counters are loaded from.';
COMMENT ON COLUMN kavach.usage_scope.scope IS 'Whose usage it is: as in kavach.budget_policy.';
COMMENT ON COLUMN kavach.usage_scope.subject IS 'The id of whose usage it is; empty for all agents.';
COMMENT ON COLUMN kavach.usage_scope.period IS 'The kind of window: as in kavach.budget_limit.';
COMMENT ON COLUMN kavach.usage_scope.start IS 'Start of the window (UTC); -infinity for total. Hours of agents are kept for two days.';
COMMENT ON COLUMN kavach.usage_scope.tokens IS 'Tokens charged in it, where a settlement gives back in the window of what it settles (kavach.charged_at).';
COMMENT ON COLUMN kavach.usage_scope.calls IS 'Calls admitted in it.';

CREATE TABLE kavach.open_authorization (
  id uuid PRIMARY KEY
);

SELECT pg_catalog.pg_extension_config_dump('kavach.open_authorization', '');

COMMENT ON TABLE kavach.open_authorization IS 'Among which authorizations of closed batches those are that nobody has settled: kavach.unsettled looks at these.';
COMMENT ON COLUMN kavach.open_authorization.id IS 'The id of the authorization.';

CREATE FUNCTION kavach.close_batches()
RETURNS bigint
LANGUAGE c VOLATILE
AS 'MODULE_PATHNAME', 'kavach_close_batches';

COMMENT ON FUNCTION kavach.close_batches() IS
'Opens the next batch and closes those before that no transaction can add to any more; returns how many rows these have. The worker does that all the time; to be seen at once.
Errors: 25006 read-only.';

CREATE FUNCTION kavach.wake_worker()
RETURNS boolean
LANGUAGE c VOLATILE
AS 'MODULE_PATHNAME', 'kavach_wake_worker';

COMMENT ON FUNCTION kavach.wake_worker() IS
'Has the worker of this database look at once at all that it does, or has it started: true if it is there already, false if it is yet to come.
Errors: 25006 read-only.';

CREATE FUNCTION kavach.read_worker(
  OUT pid int, OUT closed_at timestamptz, OUT failing_since timestamptz, OUT sqlstate text, OUT refused_at timestamptz)
LANGUAGE c VOLATILE
AS 'MODULE_PATHNAME', 'kavach_worker_status';

COMMENT ON FUNCTION kavach.read_worker() IS
  'The row of kavach.worker_status.';

CREATE VIEW kavach.worker_status AS
SELECT * FROM kavach.read_worker();

COMMENT ON VIEW kavach.worker_status IS 'The background worker of this database: it is there from the first call on, as long as batches are open. What it does now is in pg_stat_activity.';
COMMENT ON COLUMN kavach.worker_status.pid IS 'Its process; NULL: there is none.';
COMMENT ON COLUMN kavach.worker_status.closed_at IS 'When one closed batches last, since the start of the server.';
COMMENT ON COLUMN kavach.worker_status.failing_since IS 'Since when something fails, which the log tells of; NULL: nothing does.';
COMMENT ON COLUMN kavach.worker_status.sqlstate IS 'With what.';
COMMENT ON COLUMN kavach.worker_status.refused_at IS 'When the log was last told that there was no background worker to be had (max_worker_processes).';

-- With the owner's rights, as xact_start is not shown to everybody.  5 is LOCK_BATCH of src/server/lock.h.
CREATE FUNCTION kavach.batch_holders(OUT batch bigint, OUT pid int, OUT role name, OUT application_name text, OUT since timestamptz)
RETURNS SETOF record
LANGUAGE sql VOLATILE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
BEGIN ATOMIC
  SELECT (l.classid::bigint << 32) | l.objid::bigint, l.pid, a.usename, a.application_name, a.xact_start
    FROM pg_locks l
    LEFT JOIN pg_stat_activity a ON a.pid = l.pid
   WHERE l.locktype = 'userlock' AND l.objsubid = 5 AND l.granted
     AND l.database = (SELECT d.oid FROM pg_database d WHERE d.datname = current_database());
END;

COMMENT ON FUNCTION kavach.batch_holders() IS
  'Who keeps which batch open, until his transaction ends: the holders of kavach.batch_status.';

CREATE VIEW kavach.batch_status AS
WITH written AS (
  SELECT a.batch, count(*) AS rows, min(a.ts) AS first_ts
    FROM kavach.audit_log a
   WHERE a.batch = ANY (ARRAY(SELECT unnest(t.open) FROM kavach.tail t))
      OR a.batch > coalesce((SELECT t.high FROM kavach.tail t), -1)
   GROUP BY a.batch
)
SELECT coalesce(w.batch, h.batch) AS batch, coalesce(w.rows, 0) AS rows, w.first_ts,
       h.pid, h.role, h.application_name, h.since
  FROM written w
  FULL JOIN kavach.batch_holders() h ON h.batch = w.batch;

COMMENT ON VIEW kavach.batch_status IS 'The batches that are open: their rows are in the ledger, and in no rollup yet. A row for each transaction that keeps one open; a batch that nobody keeps open is about to be closed.';
COMMENT ON COLUMN kavach.batch_status.batch IS 'Its number.';
COMMENT ON COLUMN kavach.batch_status.rows IS 'How many rows it has that are committed.';
COMMENT ON COLUMN kavach.batch_status.first_ts IS 'The ts of the earliest of these.';
COMMENT ON COLUMN kavach.batch_status.pid IS 'Who keeps it open: the process; NULL: nobody.';
COMMENT ON COLUMN kavach.batch_status.role IS 'Its role.';
COMMENT ON COLUMN kavach.batch_status.application_name IS 'What it calls itself.';
COMMENT ON COLUMN kavach.batch_status.since IS 'Since when: the start of its transaction.';

-- Rows of a batch are found by an index of each month, where kavach has made one that lacks it.
DO $$
DECLARE
  month record;
BEGIN
  FOR month IN
    SELECT c.relname AS name
      FROM pg_inherits h
      JOIN pg_class c ON c.oid = h.inhrelid
     WHERE h.inhparent = 'kavach.audit_log'::regclass AND c.relkind = 'r'
       AND c.relnamespace = 'kavach'::regnamespace AND c.relname ~ '^audit_log_\d{4}_\d{2}$'
       AND NOT EXISTS (SELECT FROM pg_index i WHERE i.indrelid = c.oid AND pg_get_indexdef(i.indexrelid) LIKE '% USING btree (batch)')
  LOOP
    EXECUTE format('CREATE INDEX %I ON kavach.%I (batch)', month.name || '_batch_idx', month.name);
  END LOOP;
END
$$;

-- ---- retention.sql ----

CREATE TABLE kavach.dropped_month (
  month         date PRIMARY KEY,
  kind          text NOT NULL CHECK (kind IN ('dropped', 'archived')),
  dropped_at    timestamptz NOT NULL,
  dropped_by    text,
  relation      text,
  schema        text,
  rows          bigint NOT NULL,
  calls         bigint NOT NULL,
  tokens_cost   numeric NOT NULL,
  first_seal_no bigint,
  last_seal_no  bigint,
  finished_at   timestamptz
);

SELECT pg_catalog.pg_extension_config_dump('kavach.dropped_month', '');

COMMENT ON TABLE kavach.dropped_month IS 'Months whose rows are in the ledger no more; the rollups have them.';
COMMENT ON COLUMN kavach.dropped_month.month IS 'The UTC month, its first day.';
COMMENT ON COLUMN kavach.dropped_month.kind IS 'dropped, or archived: then its table may be there.';
COMMENT ON COLUMN kavach.dropped_month.dropped_at IS 'Since when the ledger is without it.';
COMMENT ON COLUMN kavach.dropped_month.dropped_by IS 'Who did that; NULL: kavach.retention.';
COMMENT ON COLUMN kavach.dropped_month.relation IS 'The table with its rows, as far as kavach knows; NULL: dropped.';
COMMENT ON COLUMN kavach.dropped_month.schema IS 'Where the table of an archived month was to go; NULL: it stays.';
COMMENT ON COLUMN kavach.dropped_month.rows IS 'How many rows it had.';
COMMENT ON COLUMN kavach.dropped_month.calls IS 'How many of them were authorize decisions.';
COMMENT ON COLUMN kavach.dropped_month.tokens_cost IS 'sum(tokens_cost) over them.';
COMMENT ON COLUMN kavach.dropped_month.first_seal_no IS 'The first of its batches in kavach.batch.';
COMMENT ON COLUMN kavach.dropped_month.last_seal_no IS 'The last one.';
COMMENT ON COLUMN kavach.dropped_month.finished_at IS 'Since when its table is dropped, or where it is to be; NULL: others may still use it.';

CREATE FUNCTION kavach.require_months(since timestamptz, until timestamptz)
RETURNS timestamptz
LANGUAGE c STABLE PARALLEL SAFE
AS 'MODULE_PATHNAME', 'kavach_require_months';

COMMENT ON FUNCTION kavach.require_months(timestamptz, timestamptz) IS
  'The lower bound of a sum over raw rows from since to until: since, or -infinity where it is NULL. Error KV005 where a month of them was dropped.';

CREATE FUNCTION kavach.kept_since(since timestamptz, until timestamptz)
RETURNS timestamptz
LANGUAGE c STABLE PARALLEL SAFE
AS 'MODULE_PATHNAME', 'kavach_kept_since';

COMMENT ON FUNCTION kavach.kept_since(timestamptz, timestamptz) IS
  'The lower bound of a list of rows: since; where that is NULL or -infinity, the end of the last dropped month before until. Error KV005 where a month between was dropped, or until is before there are any.';

CREATE FUNCTION kavach.no_rows(checked timestamptz, "row" anyelement)
RETURNS SETOF anyelement
LANGUAGE c STABLE PARALLEL SAFE ROWS 1
AS 'MODULE_PATHNAME', 'kavach_no_rows';

COMMENT ON FUNCTION kavach.no_rows(timestamptz, anyelement) IS
  'No rows, of a type: has the former argument evaluated, kavach.require_months or kavach.kept_since, in a query that may come to look at no row of the ledger.';

CREATE FUNCTION kavach.apply_retention()
RETURNS boolean
LANGUAGE c VOLATILE
AS 'MODULE_PATHNAME', 'kavach_apply_retention';

COMMENT ON FUNCTION kavach.apply_retention() IS
'Has a worker drop now what kavach.retention makes due, and finish what was begun: true; false where older transactions still use a table, which goes when they have ended. The worker of the database does that all the time; to be seen at once. The setting is that of the database.
Errors: 25001 in a transaction block; 25006 read-only; 53000 no worker; and as kavach_drop_month, the first one of the months'' that could not go.';

CREATE FUNCTION @extschema@.kavach_drop_month(month date)
RETURNS boolean
LANGUAGE c VOLATILE
AS 'MODULE_PATHNAME', 'kavach_drop_month';

COMMENT ON FUNCTION @extschema@.kavach_drop_month(date) IS
'Drops a month of the ledger, for good, whatever the caller''s transaction ends with: its rows are gone, bills, usage of whole days and total budgets stay. True; false where older transactions still use its table, which goes when they have ended.
month: any day of it; one that is over, and older than kavach.request_retention.
Errors: 22004 NULL; 22008 before 1970 or after 9999; 25001 in a transaction block; 25006 read-only; 42704 no such month; 53000 no worker; 55000 it is still needed, is no month of kavach''s, or is gone already; 55006 it has rows in open batches; 55P03 it is in use.';

CREATE FUNCTION @extschema@.kavach_archive_month(month date, schema text DEFAULT NULL)
RETURNS boolean
LANGUAGE c VOLATILE
AS 'MODULE_PATHNAME', 'kavach_archive_month';

COMMENT ON FUNCTION @extschema@.kavach_archive_month(date, text) IS
'Takes a month out of the ledger as kavach_drop_month does, but keeps its table, which nobody can change: to be dumped, moved and dropped, or attached again.
schema: where the table goes; NULL: it stays in kavach.
Errors: as kavach_drop_month; 3F000 no such schema.';

CREATE FUNCTION @extschema@.kavach_attach_month(month date, relation regclass DEFAULT NULL)
RETURNS boolean
LANGUAGE c VOLATILE
AS 'MODULE_PATHNAME', 'kavach_attach_month';

COMMENT ON FUNCTION @extschema@.kavach_attach_month(date, regclass) IS
'Puts a month back into the ledger whose table was kept, or restored: true.
relation: the table, which must be owned by the owner of the ledger; NULL: as kavach.dropped_month has it.
Errors: 22004 NULL; 22008 before 1970 or after 9999; 25006 read-only; 42501 another owner; 42704 a month that was not taken out; 42P01 no such table; 55000 it has not the rows that the month had.';

-- ---- counter.sql ----

CREATE FUNCTION kavach.read_cache_stats(OUT hits bigint, OUT misses bigint, OUT evictions bigint, OUT entries bigint, OUT bytes bigint)
LANGUAGE c VOLATILE
AS 'MODULE_PATHNAME', 'kavach_cache_stats';

COMMENT ON FUNCTION kavach.read_cache_stats() IS
  'The row of kavach.cache_stats.';

CREATE VIEW kavach.cache_stats AS
SELECT * FROM kavach.read_cache_stats();

COMMENT ON VIEW kavach.cache_stats IS 'What the cache of agents, permissions and limits of this server has been through since its start, and what it holds.';
COMMENT ON COLUMN kavach.cache_stats.hits IS 'Calls that found there all that they looked up.';
COMMENT ON COLUMN kavach.cache_stats.misses IS 'Calls that had to read the tables.';
COMMENT ON COLUMN kavach.cache_stats.evictions IS 'Entries that made room for others.';
COMMENT ON COLUMN kavach.cache_stats.entries IS 'Entries that are there: agents, users, tenants, and one for each database.';
COMMENT ON COLUMN kavach.cache_stats.bytes IS 'What they take of kavach.cache_size.';

-- ---- policy.sql ----

CREATE INDEX budget_baseline_subject_idx ON kavach.budget_baseline (subject);

ALTER TABLE kavach.budget_policy
  DROP CONSTRAINT budget_policy_scope_check,
  ADD CONSTRAINT budget_policy_scope_check CHECK (kavach.scope_has_id(scope) IS NOT NULL),
  DROP CONSTRAINT budget_policy_one_scope,
  ADD CONSTRAINT budget_policy_one_scope CHECK (
    CASE WHEN NOT kavach.scope_has_id(scope) THEN subject IS NULL AND NOT each
         ELSE each = (subject IS NULL) END);
ALTER TABLE kavach.budget_limit
  DROP CONSTRAINT budget_limit_period_check,
  ADD CONSTRAINT budget_limit_period_check CHECK (kavach.is_period(period));

CREATE OR REPLACE FUNCTION kavach.limits(limits jsonb, OUT measure text, OUT period text, OUT amount bigint)
RETURNS SETOF record
LANGUAGE plpgsql IMMUTABLE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
  given text;
  value jsonb;
BEGIN
  PERFORM kavach.check_object(limits, 'limits');
  FOR given, value IN SELECT * FROM jsonb_each(limits) LOOP
    SELECT k.measure, k.period INTO measure, period FROM kavach.limit_keys() k WHERE k.key = given;
    IF NOT FOUND THEN
      RAISE EXCEPTION 'unrecognized limit "%"', given
        USING ERRCODE = 'invalid_parameter_value',
              DETAIL = (SELECT format('Valid limits are %s.', regexp_replace(string_agg(k.key, ', '), '(.*), ', '\1 and ')) FROM kavach.limit_keys() k),
              HINT = 'To remove a limit, set it to null.';
    END IF;
    IF jsonb_typeof(value) = 'number' THEN
      IF (value #>> '{}')::numeric <> trunc((value #>> '{}')::numeric) OR (value #>> '{}')::numeric < 0 THEN
        RAISE EXCEPTION 'limit "%" must be a whole number of at least 0', given
          USING ERRCODE = 'invalid_parameter_value';
      END IF;
      amount := (value #>> '{}')::numeric::bigint;
    ELSIF jsonb_typeof(value) = 'null' THEN
      amount := NULL;
    ELSE
      RAISE EXCEPTION 'limit "%" must be a number or null', given
        USING ERRCODE = 'invalid_parameter_value';
    END IF;
    RETURN NEXT;
  END LOOP;
END
$$;

CREATE FUNCTION @extschema@.kavach_create_policy(
  agent_id   text DEFAULT NULL,
  user_id    text DEFAULT NULL,
  tenant_id  text DEFAULT NULL,
  each       text DEFAULT NULL,
  all_agents boolean DEFAULT false,
  limits     jsonb DEFAULT NULL,
  action     text DEFAULT 'block',
  policy_id  text DEFAULT NULL,
  replace    boolean DEFAULT false)
RETURNS text
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
  new_id text := coalesce(policy_id, 'pol_' || pg_catalog.replace(gen_random_uuid()::text, '-', ''));
  new kavach.budget_policy;
  old kavach.budget_policy;
  created boolean;
  changed boolean := false;
BEGIN
  new.scope := kavach.policy_scope(agent_id, user_id, tenant_id, each, all_agents);
  IF agent_id IS NOT NULL THEN
    PERFORM kavach.check_agent(agent_id);
  END IF;
  PERFORM kavach.check_id(user_id, 'user_id', required => false),
          kavach.check_id(tenant_id, 'tenant_id', required => false),
          kavach.check_id(policy_id, 'policy_id', required => false),
          kavach.check_action(action);
  IF policy_id NOT LIKE 'pol\_%' THEN
    RAISE EXCEPTION 'policy_id must begin with "pol_"'
      USING ERRCODE = 'invalid_parameter_value',
            HINT = 'Leave it out to have one made.';
  END IF;
  IF replace AND policy_id IS NULL THEN
    RAISE EXCEPTION 'replace needs a policy_id'
      USING ERRCODE = 'invalid_parameter_value',
            HINT = 'Give the id of the policy to replace: policy_id => ''pol_...''.';
  END IF;

  new.policy_id := new_id;
  new.subject := coalesce(agent_id, user_id, tenant_id);
  new.each := each IS NOT NULL;
  new.action := action;
  LOOP
    INSERT INTO kavach.budget_policy (policy_id, scope, subject, each, action)
    VALUES (new.policy_id, new.scope, new.subject, new.each, new.action)
    ON CONFLICT ON CONSTRAINT budget_policy_pkey DO NOTHING;
    created := FOUND;
    EXIT WHEN created;
    IF NOT coalesce(replace, false) THEN
      RAISE EXCEPTION 'policy "%" already exists', new_id
        USING ERRCODE = 'unique_violation',
              HINT = 'Change it with kavach_update_policy() or replace => true, or leave policy_id out to have one made.';
    END IF;
    SELECT * INTO old FROM kavach.budget_policy p WHERE p.policy_id = new_id FOR UPDATE;
    EXIT WHEN FOUND;
    -- dropped meanwhile: it is to be created after all
  END LOOP;

  IF created THEN
    -- one of that id whose row was deleted by hand may have left these
    DELETE FROM kavach.budget_limit l WHERE l.policy_id = new_id;
    DELETE FROM kavach.budget_baseline b WHERE b.policy_id = new_id;
  ELSE
    changed := kavach.replace_policy(old, new, limits);
  END IF;
  changed := kavach.merge_limits(new_id, limits) OR changed;
  IF replace THEN
    RAISE NOTICE 'policy "%" %', new_id, CASE WHEN created THEN 'created' WHEN changed THEN 'replaced' ELSE 'unchanged' END;
  END IF;
  RETURN new_id;
END
$$;

COMMENT ON FUNCTION @extschema@.kavach_create_policy(text, text, text, text, boolean, jsonb, text, text, boolean) IS
'Creates a budget and returns its id (pol_...). It counts what its window already holds.
Exactly one scope: agent_id, user_id, tenant_id, each (agent, user or tenant: one limit for every one of them separately) or all_agents => true (one pool);
limits: {"max_tokens_cost_per_month": 5000}, at least one; keys max_tokens_cost_ or max_calls_ with per_hour, per_day, per_month (UTC) and max_tokens_cost_total, max_calls_total;
action: warn, throttle, block or revoke;
policy_id: pol_..., NULL makes one; replace: a policy of that id that is there gets this scope, action and exactly these limits; it keeps what a reset forgave of limits that stay, and whether it is enabled. A NOTICE says whether it was created, replaced or unchanged.
Errors: 22004, 22023, 22001, 22003 bad input; 23505 the id is taken; 42704 unknown agent.';

CREATE FUNCTION kavach.replace_policy(old kavach.budget_policy, new kavach.budget_policy, limits jsonb)
RETURNS boolean
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
#variable_conflict use_column
DECLARE
  changed boolean;
BEGIN
  UPDATE kavach.budget_policy p
     SET (scope, subject, each, action) = (SELECT new.scope, new.subject, new.each, new.action)
   WHERE p.policy_id = new.policy_id
     AND (old.scope, old.subject, old.each, old.action) IS DISTINCT FROM (new.scope, new.subject, new.each, new.action);
  changed := FOUND;
  DELETE FROM kavach.budget_limit l
   WHERE l.policy_id = new.policy_id
     AND NOT EXISTS (SELECT FROM kavach.limits(replace_policy.limits) c WHERE (c.measure, c.period) = (l.measure, l.period));
  changed := changed OR FOUND;
  -- what was forgiven was forgiven to somebody else
  DELETE FROM kavach.budget_baseline b
   WHERE b.policy_id = new.policy_id
     AND (old.scope, old.subject, old.each) IS DISTINCT FROM (new.scope, new.subject, new.each);
  RETURN changed;
END
$$;

COMMENT ON FUNCTION kavach.replace_policy(kavach.budget_policy, kavach.budget_policy, jsonb) IS
  'Gives a policy another scope and action, and takes the limits away that are not among these: true if something changed.';

CREATE OR REPLACE FUNCTION @extschema@.kavach_reset_policy(policy_id text, subject text DEFAULT NULL)
RETURNS boolean
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
  policy kavach.budget_policy := kavach.check_policy(policy_id);
BEGIN
  IF policy.each AND subject IS NULL THEN
    RAISE EXCEPTION 'policy "%" is one limit for each %: name the subject to reset', policy_id, policy.scope
      USING ERRCODE = 'invalid_parameter_value',
            HINT = format('Write kavach_reset_policy(%L, ''the %s''''s id'').', policy_id, policy.scope);
  END IF;
  IF NOT policy.each AND subject IS NOT NULL AND subject IS DISTINCT FROM policy.subject THEN
    RAISE EXCEPTION 'policy "%" has no subject "%"', policy_id, subject
      USING ERRCODE = 'invalid_parameter_value',
            HINT = 'Leave subject out: only an each policy needs it.';
  END IF;
  PERFORM kavach.check_id(subject, coalesce(kavach.of_scope(policy.scope, NULL, 'user_id', NULL), 'subject'), required => false);
  IF policy.each AND NOT kavach.is_known(policy.scope, subject) THEN
    RAISE EXCEPTION '% "%" is not known', policy.scope, subject
      USING ERRCODE = 'undefined_object',
            DETAIL = coalesce(kavach.of_scope(policy.scope, 'There is none, and the ledger holds no usage of it.', NULL, NULL),
                              'No agent belongs to it, and the ledger holds no usage of it.'),
            HINT = 'kavach.budget_status lists who has used something, by policy.';
  END IF;

  INSERT INTO kavach.budget_baseline AS b (policy_id, measure, period, subject, period_start, usage)
  SELECT l.policy_id, l.measure, l.period, coalesce(policy.subject, kavach_reset_policy.subject),
         u.period_start, CASE l.measure WHEN 'tokens' THEN u.tokens ELSE u.calls END
    FROM kavach.budget_limit l,
         kavach.current_usage(policy.scope, coalesce(policy.subject, kavach_reset_policy.subject), l.period, committed => true) u
   WHERE l.policy_id = policy.policy_id
  ON CONFLICT ON CONSTRAINT budget_baseline_key DO UPDATE
     SET period_start = excluded.period_start, usage = excluded.usage
   WHERE (b.period_start, b.usage) IS DISTINCT FROM (excluded.period_start, excluded.usage);
  RETURN FOUND;
END
$$;

COMMENT ON FUNCTION @extschema@.kavach_reset_policy(text, text) IS
'Forgives what a budget''s current windows hold, so that it starts anew: true if something changed. Usage and bills are untouched, later windows too.
subject: which agent, user or tenant, required for an each policy.
Errors: 22004, 22023, 22001 bad input; 22003 overflow; 42704 unknown policy, or a subject that no agent has and of which the ledger has no usage.';

CREATE FUNCTION kavach.is_known(scope text, subject text)
RETURNS boolean
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
  IF EXISTS (SELECT FROM kavach.agent a WHERE kavach.of_scope(scope, a.agent_id, a.user_id, a.tenant_id) = subject) THEN
    RETURN true;
  END IF;
  RETURN (u.tokens, u.calls) <> (0, 0)
    FROM kavach.windows(kavach.clock_now()) w, kavach.current_usage(scope, subject, w.period, committed => false) u
   WHERE w.period_end IS NULL;
END
$$;

COMMENT ON FUNCTION kavach.is_known(text, text) IS
  'Whether an agent, user or tenant is one that kavach has heard of: by its agents, or else its usage.';

CREATE OR REPLACE FUNCTION @extschema@.kavach_drop_policy(policy_id text)
RETURNS boolean
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
#variable_conflict use_column
BEGIN
  PERFORM kavach.check_id(kavach_drop_policy.policy_id, 'policy_id');
  PERFORM FROM kavach.budget_policy p WHERE p.policy_id = kavach_drop_policy.policy_id FOR UPDATE;
  IF NOT FOUND THEN
    RETURN false;
  END IF;
  -- before the policy, by which it is known whom a limit is about
  DELETE FROM kavach.budget_limit l WHERE l.policy_id = kavach_drop_policy.policy_id;
  DELETE FROM kavach.budget_baseline b WHERE b.policy_id = kavach_drop_policy.policy_id;
  DELETE FROM kavach.budget_policy p WHERE p.policy_id = kavach_drop_policy.policy_id;
  RETURN true;
END
$$;

CREATE OR REPLACE VIEW kavach.budget_status AS
WITH win AS (
  SELECT * FROM kavach.windows(kavach.clock_now())
), each AS MATERIALIZED (
  -- what each policies count; of agents' hours, closed batches may not have those any more that are old (src/ledger/tally.c)
  SELECT DISTINCT p.scope, w.*,
         coalesce(kavach.of_scope(p.scope, '', NULL, NULL) = '' AND w.period_end - w.period_start < interval '1 day'
                    AND w.period_start < statement_timestamp() - interval '1 day', false) AS old
    FROM kavach.budget_policy p JOIN kavach.budget_limit l USING (policy_id) JOIN win w USING (period)
   WHERE p.each
), unclosed AS (
  -- as in kavach.usage_part
  SELECT a.* FROM kavach.audit_log a
   WHERE a.batch > coalesce((SELECT t.high FROM kavach.tail t), -1) AND a.batch <= 9223372036854775807
   UNION ALL
  SELECT a.* FROM kavach.audit_log a
   WHERE a.batch = ANY ((SELECT t.open FROM kavach.tail t)::bigint[])
     AND a.batch >= (SELECT t.open[1] FROM kavach.tail t) AND a.batch <= (SELECT t.high FROM kavach.tail t)
), usage AS MATERIALIZED (
  -- what closed batches add up to, and the rows of the others; what is given back counts where it was charged
  SELECT n.scope, n.period, n.subject, sum(n.tokens) AS tokens, sum(n.calls) AS calls
    FROM (
      SELECT u.scope, u.period, u.subject, u.tokens, u.calls
        FROM each e JOIN kavach.usage_scope u ON (u.scope, u.period, u.start) = (e.scope, e.period, e.period_start)
       WHERE NOT e.old
       UNION ALL
      SELECT e.scope, e.period, x.subject, coalesce(a.tokens_cost, 0), (a.kind = 'authorize')::int
        FROM each e
        JOIN unclosed a ON a.ts >= e.period_start
       CROSS JOIN LATERAL kavach.charged_at(a.ts, a.tokens_cost, a.settles) AS charged_at
       CROSS JOIN LATERAL kavach.of_scope(e.scope, a.agent_id, a.user_id, a.tenant_id) AS x (subject)
       WHERE NOT e.old AND a.result = 'allowed' AND charged_at >= e.period_start AND charged_at < coalesce(e.period_end, 'infinity')
         AND x.subject IS NOT NULL
       UNION ALL
      SELECT e.scope, e.period, x.subject, coalesce(a.tokens_cost, 0), (a.kind = 'authorize')::int
        FROM each e
        JOIN kavach.audit_log a ON a.ts >= e.period_start
       CROSS JOIN LATERAL kavach.charged_at(a.ts, a.tokens_cost, a.settles) AS charged_at
       CROSS JOIN LATERAL kavach.of_scope(e.scope, a.agent_id, a.user_id, a.tenant_id) AS x (subject)
       -- no month is looked at where there is no such hour
       WHERE e.old AND a.ts >= (SELECT o.period_start FROM each o WHERE o.old)
         AND a.result = 'allowed' AND charged_at >= e.period_start AND charged_at < coalesce(e.period_end, 'infinity')
         AND x.subject IS NOT NULL) AS n
   GROUP BY n.scope, n.period, n.subject
)
SELECT p.policy_id, p.scope, s.subject, l.measure, l.period, w.period_start, w.period_end, l.amount,
       u.used, greatest(l.amount - u.used, 0) AS remaining, p.action,
       CASE WHEN NOT p.enabled THEN 'disabled' WHEN u.used >= l.amount THEN 'triggered' ELSE 'active' END AS status
  FROM kavach.budget_policy p
  JOIN kavach.budget_limit l USING (policy_id)
  JOIN win w USING (period)
 CROSS JOIN LATERAL (
    -- a named subject, or all: one row, used or not
    SELECT p.subject, (CASE l.measure WHEN 'tokens' THEN c.tokens ELSE c.calls END)::numeric AS usage
      FROM kavach.current_usage(p.scope, p.subject, l.period, committed => false) c
     WHERE NOT p.each
     UNION ALL
    -- each of them: a row for whoever used something in the window
    SELECT n.subject, CASE l.measure WHEN 'tokens' THEN n.tokens ELSE n.calls END
      FROM usage n
     WHERE p.each AND (n.scope, n.period) = (p.scope, l.period)) s
  LEFT JOIN LATERAL (
    -- two ways, as an index finds the one or the other
    SELECT n.usage FROM kavach.budget_baseline n
     WHERE (n.policy_id, n.measure, n.period, n.period_start) = (p.policy_id, l.measure, l.period, w.period_start)
       AND n.subject = s.subject
     UNION ALL
    SELECT n.usage FROM kavach.budget_baseline n
     WHERE (n.policy_id, n.measure, n.period, n.period_start) = (p.policy_id, l.measure, l.period, w.period_start)
       AND n.subject IS NULL AND s.subject IS NULL) b ON true
 CROSS JOIN LATERAL (
    SELECT CASE WHEN b.usage IS NULL THEN s.usage ELSE greatest(s.usage - b.usage, 0) END AS used) u
 WHERE NOT (p.each AND EXISTS (
    -- it yields to an enabled policy that names the subject
    SELECT FROM kavach.budget_policy n
      JOIN kavach.budget_limit nl USING (policy_id)
     WHERE n.enabled AND NOT n.each AND n.scope = p.scope AND n.subject = s.subject
       AND (nl.measure, nl.period) = (l.measure, l.period)
       AND (n.action = 'warn') = (p.action = 'warn')));

-- ---- authorize.sql ----

CREATE FUNCTION @extschema@.kavach_authorize(
  agent_id    text,
  action      text,
  resource    text,
  tokens_cost bigint DEFAULT NULL,
  arguments   jsonb DEFAULT NULL,
  ip          inet DEFAULT NULL,
  request_id  text DEFAULT NULL,
  metadata    jsonb DEFAULT NULL,
  min_tokens  bigint DEFAULT NULL,
  OUT allowed          boolean,
  OUT code             text,
  OUT reason           text,
  OUT audit_id         uuid,
  OUT policy_id        text,
  OUT tokens_granted   bigint,
  OUT tokens_remaining bigint,
  OUT calls_remaining  bigint,
  OUT retry_at         timestamptz,
  OUT action           text,
  OUT http_status      int)
LANGUAGE c VOLATILE
AS 'MODULE_PATHNAME', 'kavach_authorize';

COMMENT ON FUNCTION @extschema@.kavach_authorize(text, text, text, bigint, jsonb, inet, text, jsonb, bigint) IS
'Decides whether an agent may do something now, charges its budgets and writes the decision into the ledger. Commit before you call the model.
agent_id, action, resource: who wants to do what, required; tokens_cost: the estimate to charge, 0 to 10^15, NULL for none (then it is refused only once a budget is used up);
arguments: a JSON object for allowed_arg_patterns; ip: for ip_allowlist; metadata: a JSON object, kept;
request_id: a key that makes retries safe: the same answer again and nothing charged; min_tokens: take less, down to this.
allowed, code, reason: the outcome, the code stable; audit_id: the ledger row, for kavach_record_usage; policy_id: the budget that decided;
tokens_granted: what was charged; tokens_remaining, calls_remaining: left under the tightest limit, of calls the permission''s rate per hour included, NULL where none applies or none was looked at; retry_at: when a refused call may fit;
action: of the policy in policy_id: warn, throttle, block or revoke; http_status: what a gateway would answer. Code budget_exceeded with action revoke: this call has revoked its agent.
A refusal is an answer, no error. Errors: 22004, 22023, 22001, 22003 bad input; KV001 a request_id used for another call.';

COMMENT ON FUNCTION @extschema@.kavach_record_usage(text, bigint, uuid, text, jsonb) IS
'Records what a call really spent, after the call. What is spent is recorded, past a limit and for a revoked agent too.
tokens_cost: the actual figure, 0 to 10^15; 0 releases an estimate;
audit_id: the authorization that this settles, of a dropped agent, too: the difference is charged to its user and tenant; request_id: likewise by the request_id that it was made with, else a key that makes retries safe;
metadata: a JSON object, kept.
usage_id: the ledger row; tokens_charged: what it charges, negative for a refund; code: recorded, or over_budget where a budget is used up now, policy_id naming it; tokens_remaining, calls_remaining: as for kavach_authorize.
Errors: 22004, 22023, 22001, 22003 bad input; 42704 unknown agent; KV001 a request_id that does not belong to audit_id, KV002 an audit_id that is unknown or another agent''s, KV003 usage recorded before with another figure, KV004 a refused authorization.';

CREATE FUNCTION @extschema@.kavach_check_budget(
  agent_id    text,
  tokens_cost bigint DEFAULT NULL,
  action      text DEFAULT NULL,
  resource    text DEFAULT NULL,
  arguments   jsonb DEFAULT NULL,
  ip          inet DEFAULT NULL,
  min_tokens  bigint DEFAULT NULL,
  OUT allowed          boolean,
  OUT code             text,
  OUT reason           text,
  OUT policy_id        text,
  OUT tokens_remaining bigint,
  OUT calls_remaining  bigint,
  OUT retry_at         timestamptz,
  OUT action           text,
  OUT http_status      int)
LANGUAGE c VOLATILE
AS 'MODULE_PATHNAME', 'kavach_check_budget';

COMMENT ON FUNCTION @extschema@.kavach_check_budget(text, bigint, text, text, jsonb, inet, bigint) IS
'Tells what kavach_authorize would decide now. It advises: nothing is charged, written or locked, nobody is revoked, and only kavach_authorize decides.
tokens_cost: 0 to 10^15, NULL for a call without cost; min_tokens: as for kavach_authorize;
action, resource, arguments, ip: as for kavach_authorize; without action and resource permissions are not looked at, only the agent and its budgets.
The answers are as for kavach_authorize, what remains as things stand. Code budget_exceeded with action revoke: such a call would revoke its agent.
Errors: 22004, 22023, 22001, 22003 bad input; 22004 action without resource, or the reverse, or arguments or ip without both.';

CREATE FUNCTION @extschema@.kavach_adjust(agent_id text, tokens bigint, reason text, request_id text DEFAULT NULL)
RETURNS uuid
LANGUAGE c VOLATILE
AS 'MODULE_PATHNAME', 'kavach_adjust';

COMMENT ON FUNCTION @extschema@.kavach_adjust(text, bigint, text, text) IS
'Corrects the bill of an agent''s present user and tenant with a ledger row of kind adjustment, and returns its id.
tokens: a charge, or negative a credit, at most 10^15; it counts in the current windows; reason: required, kept;
request_id: a key that makes retries safe: the same id again and nothing charged.
Errors: 22004, 22023, 22001, 22003 bad input or a request_id used for another adjustment; 42704 unknown agent.';

-- ---- report.sql ----

CREATE FUNCTION kavach.audit_limit(max_rows int, actions text[], result text)
RETURNS bigint
LANGUAGE c IMMUTABLE PARALLEL SAFE
AS 'MODULE_PATHNAME', 'kavach_audit_limit';

COMMENT ON FUNCTION kavach.audit_limit(int, text[], text) IS
  'The limit of kavach_query_audit, max_rows, once its arguments are checked: a search that comes to look at no row must refuse them, too. Errors: 22004 a NULL among the actions; 22023 an unknown result, no action at all.';

-- The first page of somebody's rows.  Those of an agent are found by (agent_id, ts).  Of a
-- user or tenant, the sums of days tell on which there are any, and of which agents;
-- whose are much of what there is are found sooner by passing over it.  That is decided
-- on the way, from the newest day on, so that it is no plain SQL; a page is small, and
-- need not stream.

CREATE FUNCTION kavach.is_page(agent_id text, user_id text, tenant_id text, max_rows int)
RETURNS boolean
LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN coalesce(max_rows <= 1000, false) AND (agent_id IS NOT NULL OR user_id IS NOT NULL OR tenant_id IS NOT NULL);

COMMENT ON FUNCTION kavach.is_page(text, text, text, int) IS
  'Whether kavach_query_audit leaves a search to kavach.audit_page: it wants few rows, and of somebody.';

CREATE FUNCTION kavach.audit_page(
  agent_id  text,
  user_id   text,
  tenant_id text,
  since     timestamptz,
  until     timestamptz,
  actions   text[],
  result    text,
  max_rows  int,
  before    uuid)
RETURNS SETOF kavach.ledger
LANGUAGE plpgsql STABLE PARALLEL SAFE SECURITY DEFINER ROWS 100
SET search_path = pg_catalog, pg_temp
AS $$
#variable_conflict use_column
DECLARE
  upper timestamptz := least(until, kavach.uuid7_ts(before) + interval '1 ms', 'infinity');
  lower timestamptz := kavach.kept_since(kavach.range_start(since, until), upper);
  wanted int := max_rows;
  found_rows int;
  tail record;
  tail_days date[];
  tail_agents text[];
  sums int := 16;  -- of how many sums of days the rows are looked for at once
  first_day date;
  last_day date := (upper AT TIME ZONE 'UTC')::date + 1;  -- what is from here on is found already
  share record;
BEGIN
  IF audit_page.agent_id IS NOT NULL THEN
    RETURN QUERY
      SELECT l.*
        FROM kavach.audit_log l
       WHERE l.agent_id = audit_page.agent_id AND l.ts >= lower AND l.ts < upper
         AND (audit_page.before IS NULL OR l.id < audit_page.before)
         AND (audit_page.user_id IS NULL OR l.user_id = audit_page.user_id)
         AND (audit_page.tenant_id IS NULL OR l.tenant_id = audit_page.tenant_id)
         AND (audit_page.actions IS NULL OR l.action = ANY (audit_page.actions))
         AND (audit_page.result IS NULL OR l.result = audit_page.result)
       ORDER BY l.ts DESC, l.id DESC
       LIMIT wanted;
    RETURN;
  END IF;

  SELECT coalesce(max(t.high), -1) AS high, coalesce(max(t.open), '{}') AS open INTO tail FROM kavach.tail t;
  SELECT array_agg(t.day), array_agg(t.agent_id) INTO tail_days, tail_agents
    FROM (SELECT DISTINCT (l.ts AT TIME ZONE 'UTC')::date AS day, l.agent_id
            FROM kavach.audit_log l
           WHERE (l.batch > tail.high AND l.batch <= 9223372036854775807 OR l.batch = ANY (tail.open))
             AND l.ts >= lower AND l.ts < upper
             AND (audit_page.user_id IS NULL OR l.user_id = audit_page.user_id)
             AND (audit_page.tenant_id IS NULL OR l.tenant_id = audit_page.tenant_id)) t;

  WHILE wanted > 0 AND last_day > '-infinity' LOOP
    SELECT d.day INTO first_day
      FROM kavach.usage_daily d
     WHERE d.day >= (lower AT TIME ZONE 'UTC')::date AND d.day < last_day
       AND (audit_page.user_id IS NULL OR d.user_id = audit_page.user_id)
       AND (audit_page.tenant_id IS NULL OR d.tenant_id = audit_page.tenant_id)
     ORDER BY d.day DESC
    OFFSET sums - 1 LIMIT 1;
    first_day := coalesce(first_day, '-infinity');
    lower := greatest(kavach.range_start(since, until), first_day::timestamp AT TIME ZONE 'UTC');
    upper := least(upper, last_day::timestamp AT TIME ZONE 'UTC');

    SELECT s.calls, s.is_unknown, CASE WHEN s.calls > 1000 THEN
             (SELECT sum(d.calls) FROM kavach.usage_daily d WHERE d.day >= first_day AND d.day < last_day) END AS all_calls
      INTO share
      FROM (SELECT sum(d.calls) AS calls, coalesce(bool_or(d.agent_id IS NULL), false) AS is_unknown
              FROM kavach.usage_daily d
             WHERE d.day >= greatest(first_day, (lower AT TIME ZONE 'UTC')::date) AND d.day < last_day
               AND (audit_page.user_id IS NULL OR d.user_id = audit_page.user_id)
               AND (audit_page.tenant_id IS NULL OR d.tenant_id = audit_page.tenant_id)) s;

    -- how many rows there are to pass over until the page is full, against all of theirs; with a filter it may never be
    IF share.is_unknown OR share.all_calls < 4 * share.calls
       OR (audit_page.actions IS NULL AND audit_page.result IS NULL AND share.all_calls * wanted < share.calls * share.calls) THEN
      RETURN QUERY
        SELECT l.*
          FROM kavach.audit_log l
         WHERE l.ts >= lower AND l.ts < upper
           AND (audit_page.before IS NULL OR l.id < audit_page.before)
           AND (audit_page.user_id IS NULL OR l.user_id = audit_page.user_id)
           AND (audit_page.tenant_id IS NULL OR l.tenant_id = audit_page.tenant_id)
           AND (audit_page.actions IS NULL OR l.action = ANY (audit_page.actions))
           AND (audit_page.result IS NULL OR l.result = audit_page.result)
         ORDER BY l.id DESC
         LIMIT wanted;
    ELSE
      RETURN QUERY
        SELECT l.*
          FROM (SELECT d.day, d.agent_id
                  FROM kavach.usage_daily d
                 WHERE d.day >= greatest(first_day, (lower AT TIME ZONE 'UTC')::date) AND d.day < last_day
                   AND (audit_page.user_id IS NULL OR d.user_id = audit_page.user_id)
                   AND (audit_page.tenant_id IS NULL OR d.tenant_id = audit_page.tenant_id)
                 UNION
                SELECT t.day, t.agent_id
                  FROM unnest(tail_days, tail_agents) AS t (day, agent_id)
                 WHERE t.day >= first_day AND t.day < last_day) d
         CROSS JOIN LATERAL
               (SELECT a.*
                  FROM kavach.audit_log a
                 WHERE a.agent_id = d.agent_id AND a.ts >= lower AND a.ts < upper
                   AND a.ts >= d.day::timestamp AT TIME ZONE 'UTC' AND a.ts < (d.day + 1)::timestamp AT TIME ZONE 'UTC'
                   AND (audit_page.before IS NULL OR a.id < audit_page.before)
                   AND (audit_page.user_id IS NULL OR a.user_id = audit_page.user_id)
                   AND (audit_page.tenant_id IS NULL OR a.tenant_id = audit_page.tenant_id)
                   AND (audit_page.actions IS NULL OR a.action = ANY (audit_page.actions))
                   AND (audit_page.result IS NULL OR a.result = audit_page.result)
                OFFSET 0) l
         ORDER BY l.id DESC
         LIMIT wanted;
    END IF;
    GET DIAGNOSTICS found_rows = ROW_COUNT;
    wanted := wanted - found_rows;
    last_day := first_day;
    sums := sums * 4;
  END LOOP;
END
$$;

COMMENT ON FUNCTION kavach.audit_page(text, text, text, timestamptz, timestamptz, text[], text, int, uuid) IS
  'What kavach_query_audit answers with these arguments, of which one is an agent, a user or a tenant, and max_rows is given.';

CREATE OR REPLACE FUNCTION @extschema@.kavach_query_audit(
  agent_id  text DEFAULT NULL,
  user_id   text DEFAULT NULL,
  tenant_id text DEFAULT NULL,
  since     timestamptz DEFAULT NULL,
  until     timestamptz DEFAULT NULL,
  actions   text[] DEFAULT NULL,
  result    text DEFAULT NULL,
  max_rows  int DEFAULT NULL,
  before    uuid DEFAULT NULL)
RETURNS SETOF kavach.ledger
LANGUAGE sql STABLE PARALLEL SAFE
BEGIN ATOMIC
  SELECT l.id, l.ts, l.batch, l.kind, l.agent_id, l.user_id, l.tenant_id, l.action, l.resource, l.arguments,
         l.ip, l.result, l.code, l.reason, l.permission_id, l.policy_id, l.tokens_requested, l.min_tokens,
         l.tokens_released, l.tokens_cost, l.settles, l.request_id, l.provider, l.model, l.tokens_input,
         l.tokens_output, l.tokens_cache_read, l.tokens_cache_write, l.cost, l.metadata
    FROM (SELECT false AS is_page, l.* FROM kavach.ledger l
           UNION ALL
          SELECT true, p.*
            FROM kavach.audit_page(
                   kavach_query_audit.agent_id, kavach_query_audit.user_id, kavach_query_audit.tenant_id,
                   kavach_query_audit.since, kavach_query_audit.until, kavach_query_audit.actions,
                   kavach_query_audit.result, kavach_query_audit.max_rows, kavach_query_audit.before) p) l
   WHERE (l.is_page
          AND kavach.is_page(kavach_query_audit.agent_id, kavach_query_audit.user_id, kavach_query_audit.tenant_id, kavach_query_audit.max_rows))
      OR (NOT l.is_page
          AND NOT kavach.is_page(kavach_query_audit.agent_id, kavach_query_audit.user_id, kavach_query_audit.tenant_id, kavach_query_audit.max_rows)
          AND l.ts >= kavach.range_start(kavach_query_audit.since, kavach_query_audit.until)
          AND l.ts >= kavach.kept_since(kavach_query_audit.since, least(kavach_query_audit.until, kavach.uuid7_ts(kavach_query_audit.before) + interval '1 ms'))
          AND l.ts < coalesce(kavach_query_audit.until, 'infinity')
          AND l.ts < coalesce(kavach.uuid7_ts(kavach_query_audit.before) + interval '1 ms', 'infinity')
          AND (kavach_query_audit.before IS NULL OR l.id < kavach_query_audit.before)
          AND (kavach_query_audit.agent_id IS NULL OR l.agent_id = kavach_query_audit.agent_id)
          AND (kavach_query_audit.user_id IS NULL OR l.user_id = kavach_query_audit.user_id)
          AND (kavach_query_audit.tenant_id IS NULL OR l.tenant_id = kavach_query_audit.tenant_id)
          AND (kavach_query_audit.actions IS NULL OR l.action = ANY (kavach_query_audit.actions))
          AND (kavach_query_audit.result IS NULL OR l.result = kavach_query_audit.result))
   ORDER BY l.id DESC
   LIMIT CASE WHEN kavach.kept_since(kavach.range_start(kavach_query_audit.since, kavach_query_audit.until),
                                     least(kavach_query_audit.until, kavach.uuid7_ts(kavach_query_audit.before) + interval '1 ms')) IS NOT NULL
         THEN kavach.audit_limit(kavach_query_audit.max_rows, kavach_query_audit.actions, kavach_query_audit.result) END;
END;

COMMENT ON FUNCTION @extschema@.kavach_query_audit(text, text, text, timestamptz, timestamptz, text[], text, int, uuid) IS
'Ledger rows, newest first. Every argument narrows, NULL does not: agent_id, user_id, tenant_id; since (inclusive) and until (exclusive);
actions: any of these; result: allowed, denied or rate_limited; max_rows: at most so many; before: rows older than this id, to page.
Without since: from the end of the last month on that was dropped.
Errors: 22004 a NULL among the actions; 22023 where since is after until, for an unknown result and for an empty list of actions; 2201W negative max_rows; KV005 in a month that was dropped.';

-- Whether anybody has settled a call is asked call by call, and each call is fetched by its
-- id, whatever the planner would take these to be: as many as are open, which it cannot know.

CREATE OR REPLACE VIEW kavach.unsettled AS
SELECT a.*
  FROM (SELECT l.*
          FROM kavach.open_authorization o
         CROSS JOIN LATERAL (SELECT CASE WHEN substr(o.id::text, 15, 1) = '7' THEN kavach.uuid7_ts(o.id) END) AS t (made)
         CROSS JOIN LATERAL
               (SELECT l.*
                  FROM kavach.audit_log l
                 WHERE l.id = o.id AND l.ts >= coalesce(t.made, '-infinity') AND l.ts < coalesce(t.made + interval '1 ms', 'infinity')
                OFFSET 0) l
         UNION ALL
        SELECT l.*
          FROM kavach.audit_log l
         WHERE l.batch > coalesce((SELECT t.high FROM kavach.tail t), -1) AND l.batch <= 9223372036854775807
         UNION ALL
        SELECT l.*
          FROM kavach.audit_log l
         WHERE l.batch = ANY ((SELECT t.open FROM kavach.tail t)::bigint[])
           AND l.batch >= (SELECT t.open[1] FROM kavach.tail t) AND l.batch <= (SELECT t.high FROM kavach.tail t)) a
 WHERE a.kind = 'authorize' AND a.result = 'allowed' AND a.tokens_cost IS NOT NULL
   AND (SELECT u.settles FROM kavach.audit_log u WHERE u.settles = a.id AND u.ts >= a.ts - interval '1 day' LIMIT 1) IS NULL;

COMMENT ON VIEW kavach.unsettled IS 'Admitted calls with a cost that nobody has settled yet: settle them with kavach_record_usage, 0 tokens where the model was not called.';

DO $$
DECLARE
  c record;
BEGIN
  FOR c IN
    SELECT a.attname, col_description(l.attrelid, l.attnum) AS text
      FROM pg_attribute a
      JOIN pg_attribute l ON l.attrelid = 'kavach.audit_log'::regclass AND l.attname = a.attname
     WHERE a.attrelid = 'kavach.unsettled'::regclass AND a.attnum > 0
  LOOP
    EXECUTE format('COMMENT ON COLUMN kavach.unsettled.%I IS %L', c.attname, c.text);
  END LOOP;
END
$$;

CREATE FUNCTION @extschema@.kavach_unsettled(
  agent_id text,
  until    timestamptz DEFAULT NULL)
RETURNS TABLE (audit_id uuid, ts timestamptz, action text, resource text, tokens_cost bigint, request_id text)
LANGUAGE plpgsql STABLE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
#variable_conflict use_column
DECLARE
  calls CONSTANT bigint := (SELECT coalesce(sum(m.calls), 0) FROM kavach.usage_monthly m WHERE m.agent_id = kavach_unsettled.agent_id);
BEGIN
  PERFORM kavach.check_id(kavach_unsettled.agent_id, 'agent_id');
  -- through what is open of all agents, or all calls of this one: whichever is less
  IF EXISTS (SELECT FROM kavach.open_authorization OFFSET calls) THEN
    RETURN QUERY
      SELECT a.id, a.ts, a.action, a.resource, a.tokens_cost, a.request_id
        FROM kavach.audit_log a
       WHERE a.agent_id = kavach_unsettled.agent_id AND a.ts < coalesce(kavach_unsettled.until, 'infinity')
         AND a.kind = 'authorize' AND a.result = 'allowed' AND a.tokens_cost IS NOT NULL
         AND (SELECT u.settles FROM kavach.audit_log u WHERE u.settles = a.id AND u.ts >= a.ts - interval '1 day' LIMIT 1) IS NULL
       ORDER BY a.id;
  ELSE
    RETURN QUERY
      SELECT u.id, u.ts, u.action, u.resource, u.tokens_cost, u.request_id
        FROM kavach.unsettled u
       WHERE u.agent_id = kavach_unsettled.agent_id AND u.ts < coalesce(kavach_unsettled.until, 'infinity')
       ORDER BY u.id;
  END IF;
  IF NOT FOUND AND NOT EXISTS (SELECT FROM kavach.agent a WHERE a.agent_id = kavach_unsettled.agent_id) THEN
    RAISE EXCEPTION 'agent "%" does not exist', kavach_unsettled.agent_id
      USING ERRCODE = 'undefined_object',
            DETAIL = 'Nor has it left anything open.';
  END IF;
END
$$;

COMMENT ON FUNCTION @extschema@.kavach_unsettled(text, timestamptz) IS
'What an agent has left open: its admitted calls with a cost that nobody has settled yet, oldest first; of a dropped one, too. Settle them with kavach_record_usage(agent_id, tokens, audit_id => audit_id), 0 tokens where the model was not called.
until: only calls made before; NULL: all.
Errors: 22004, 22023, 22001 bad input; 42704 unknown agent that has left nothing open.';

-- What a ledger row counts as is said here alone, and in src/ledger/rollup.c: reports sum
-- these columns.  What is rare is asked first, since that is done for every row.

CREATE VIEW kavach.usage AS
SELECT a.ts, (a.ts AT TIME ZONE 'UTC')::date AS day, CASE WHEN a.user_id IS NOT NULL THEN a.agent_id END AS agent_id, a.user_id, a.tenant_id,
       CASE WHEN a.kind = 'authorize' THEN 1 ELSE 0 END AS calls,
       CASE WHEN a.result <> 'allowed' AND a.kind = 'authorize' THEN 1 ELSE 0 END AS denied,
       CASE WHEN a.tokens_requested IS NULL AND a.kind = 'authorize' AND a.result = 'allowed' THEN 1 ELSE 0 END AS calls_without_cost,
       coalesce(a.tokens_cost, 0) AS tokens_cost,
       coalesce(a.tokens_input, 0) AS tokens_input, coalesce(a.tokens_output, 0) AS tokens_output,
       coalesce(a.tokens_cache_read, 0) AS tokens_cache_read, coalesce(a.tokens_cache_write, 0) AS tokens_cache_write,
       coalesce(a.cost, 0) AS cost,
       a.provider, a.model,
       CASE WHEN a.settles IS NOT NULL AND (a.provider IS NOT NULL OR a.model IS NOT NULL) THEN coalesce(a.tokens_released, 0) ELSE 0 END AS tokens_moved,
       a.action, a.resource, a.metadata, a.id, a.batch
  FROM kavach.audit_log a;

COMMENT ON VIEW kavach.usage IS 'What each ledger row counts as: every report sums these columns.';
COMMENT ON COLUMN kavach.usage.ts IS 'Clock time of the call.';
COMMENT ON COLUMN kavach.usage.day IS 'Its UTC day.';
COMMENT ON COLUMN kavach.usage.agent_id IS 'Who called; NULL for an unknown agent.';
COMMENT ON COLUMN kavach.usage.user_id IS 'The agent''s owner at that time; NULL for an unknown agent.';
COMMENT ON COLUMN kavach.usage.tenant_id IS 'The agent''s tenant at that time.';
COMMENT ON COLUMN kavach.usage.calls IS '1 for an authorize decision, else 0.';
COMMENT ON COLUMN kavach.usage.denied IS '1 for one that refused, else 0.';
COMMENT ON COLUMN kavach.usage.calls_without_cost IS '1 for one that admitted a call which gave no cost, else 0.';
COMMENT ON COLUMN kavach.usage.tokens_cost IS 'What the row charges; 0 where it gave no cost.';
COMMENT ON COLUMN kavach.usage.provider IS 'Who served the call, when known.';
COMMENT ON COLUMN kavach.usage.model IS 'The model that served it, when known.';
COMMENT ON COLUMN kavach.usage.tokens_moved IS 'Of a settlement that names provider or model: the estimate that it replaces, which was charged without. By model, tokens_cost + tokens_moved count under its own and -tokens_moved under NULL.';
COMMENT ON COLUMN kavach.usage.action IS 'What was asked: the action.';
COMMENT ON COLUMN kavach.usage.resource IS 'What was asked: the resource.';
COMMENT ON COLUMN kavach.usage.metadata IS 'The application''s own notes, a JSON object.';
COMMENT ON COLUMN kavach.usage.id IS 'The ledger row''s id.';
COMMENT ON COLUMN kavach.usage.batch IS 'The batch that it belongs to.';

CREATE VIEW kavach.usage_entry AS
SELECT u.id, u.batch, u.ts, u.day, u.tenant_id, u.user_id, u.agent_id, e.provider, e.model, u.action, u.resource, u.metadata,
       u.calls * e.n AS calls, u.denied * e.n AS denied, u.calls_without_cost * e.n AS calls_without_cost, e.tokens_cost,
       u.tokens_input * e.n AS tokens_input, u.tokens_output * e.n AS tokens_output,
       u.tokens_cache_read * e.n AS tokens_cache_read, u.tokens_cache_write * e.n AS tokens_cache_write, u.cost * e.n AS cost
  FROM kavach.usage u
 CROSS JOIN LATERAL (VALUES (1, u.provider, u.model, u.tokens_cost + u.tokens_moved), (0, NULL, NULL, -u.tokens_moved)) AS e (n, provider, model, tokens_cost)
 WHERE e.n = 1 OR u.tokens_moved <> 0;

COMMENT ON VIEW kavach.usage_entry IS 'kavach.usage for sums by provider and model: a settlement that names one is two rows, so that it takes its estimate away where that was charged.';

-- Each row of the ledger once, in the sums of its month, in those of its day, in the day's
-- total, as the row that it is, and as one of the tail where no sum has it yet: who reads
-- this takes one part for each stretch of time, and the tail with the sums.  In one statement, so that
-- sums and tail are of one snapshot.
--
-- Statistics tell nothing about the tail: it is looked for by index whatever they say,
-- since a range with both bounds is taken to be small.  What is true of a part is told
-- by a constant of that name, so that the planner drops those that are not wanted.

CREATE VIEW kavach.usage_part AS
SELECT 'monthly' AS part, NULL::uuid AS id, (m.month::timestamp AT TIME ZONE 'UTC') AS ts, m.month AS day,
       m.tenant_id, m.user_id, m.agent_id, m.provider, m.model, NULL::text AS action, NULL::text AS resource, NULL::jsonb AS metadata,
       m.calls, m.denied, m.calls_without_cost, m.tokens_cost, m.tokens_input, m.tokens_output, m.tokens_cache_read, m.tokens_cache_write, m.cost
  FROM kavach.usage_monthly m
 UNION ALL
SELECT 'daily', NULL, (d.day::timestamp AT TIME ZONE 'UTC'), d.day,
       d.tenant_id, d.user_id, d.agent_id, d.provider, d.model, NULL, NULL, NULL,
       d.calls, d.denied, d.calls_without_cost, d.tokens_cost, d.tokens_input, d.tokens_output, d.tokens_cache_read, d.tokens_cache_write, d.cost
  FROM kavach.usage_daily d
 UNION ALL
SELECT 'together', NULL, (t.day::timestamp AT TIME ZONE 'UTC'), t.day, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL,
       t.calls, t.denied, t.calls_without_cost, t.tokens_cost, t.tokens_input, t.tokens_output, t.tokens_cache_read, t.tokens_cache_write, t.cost
  FROM kavach.usage_total t
 UNION ALL
SELECT 'row', e.id, e.ts, e.day, e.tenant_id, e.user_id, e.agent_id, e.provider, e.model, e.action, e.resource, e.metadata,
       e.calls, e.denied, e.calls_without_cost, e.tokens_cost, e.tokens_input, e.tokens_output, e.tokens_cache_read, e.tokens_cache_write, e.cost
  FROM kavach.usage_entry e
 UNION ALL
SELECT 'tail', e.id, e.ts, e.day, e.tenant_id, e.user_id, e.agent_id, e.provider, e.model, e.action, e.resource, e.metadata,
       e.calls, e.denied, e.calls_without_cost, e.tokens_cost, e.tokens_input, e.tokens_output, e.tokens_cache_read, e.tokens_cache_write, e.cost
  FROM kavach.usage_entry e
 WHERE e.batch > coalesce((SELECT t.high FROM kavach.tail t), -1) AND e.batch <= 9223372036854775807
 UNION ALL
SELECT 'tail', e.id, e.ts, e.day, e.tenant_id, e.user_id, e.agent_id, e.provider, e.model, e.action, e.resource, e.metadata,
       e.calls, e.denied, e.calls_without_cost, e.tokens_cost, e.tokens_input, e.tokens_output, e.tokens_cache_read, e.tokens_cache_write, e.cost
  FROM kavach.usage_entry e
 WHERE e.batch = ANY ((SELECT t.open FROM kavach.tail t)::bigint[])
   AND e.batch >= (SELECT t.open[1] FROM kavach.tail t) AND e.batch <= (SELECT t.high FROM kavach.tail t);

COMMENT ON VIEW kavach.usage_part IS 'What reports sum: the ledger''s rows, what months and days of closed batches add up to, and the rows that are in none of these sums yet. kavach.usage_between puts a range together.';
COMMENT ON COLUMN kavach.usage_part.part IS 'monthly or daily: the sum of the closed batches'' rows in it, by agent and model; together: of a day, all agents''; row: a row of kavach.usage_entry; tail: the same, of a batch that is not in the sums.';
COMMENT ON COLUMN kavach.usage_part.id IS 'Of a row: its id.';
COMMENT ON COLUMN kavach.usage_part.ts IS 'Of a row: clock time of the call; of a sum: the start of its month or day.';
COMMENT ON COLUMN kavach.usage_part.day IS 'Its UTC day.';

CREATE FUNCTION kavach.usage_between(
  since timestamptz,
  until timestamptz,
  whole text)
RETURNS SETOF kavach.usage_part
LANGUAGE sql STABLE PARALLEL SAFE
BEGIN ATOMIC
  SELECT p.*
    FROM kavach.usage_part p
   WHERE (p.part = 'monthly' AND usage_between.whole = 'monthly'
          AND p.day >= (kavach.range_edge(usage_between.since, usage_between.until, usage_between.whole, 1) AT TIME ZONE 'UTC')::date
          AND p.day < (kavach.range_edge(usage_between.since, usage_between.until, usage_between.whole, 2) AT TIME ZONE 'UTC')::date)
      OR (p.part = 'daily' AND usage_between.whole <> 'together'
          AND (p.day >= (kavach.range_edge(usage_between.since, usage_between.until, usage_between.whole, 0) AT TIME ZONE 'UTC')::date
               AND p.day < (kavach.range_edge(usage_between.since, usage_between.until, usage_between.whole, 1) AT TIME ZONE 'UTC')::date
               OR p.day >= (kavach.range_edge(usage_between.since, usage_between.until, usage_between.whole, 2) AT TIME ZONE 'UTC')::date
               AND p.day < (kavach.range_edge(usage_between.since, usage_between.until, usage_between.whole, 3) AT TIME ZONE 'UTC')::date))
      OR (p.part = 'together' AND usage_between.whole = 'together'
          AND p.day >= (kavach.range_edge(usage_between.since, usage_between.until, usage_between.whole, 0) AT TIME ZONE 'UTC')::date
          AND p.day < (kavach.range_edge(usage_between.since, usage_between.until, usage_between.whole, 3) AT TIME ZONE 'UTC')::date)
      OR (p.part = 'tail'
          AND p.ts >= kavach.range_edge(usage_between.since, usage_between.until, usage_between.whole, 0)
          AND p.ts < kavach.range_edge(usage_between.since, usage_between.until, usage_between.whole, 3))
      OR (p.part = 'row'
          AND (p.ts >= usage_between.since
               AND p.ts < kavach.range_edge(usage_between.since, usage_between.until, usage_between.whole, 0)
               OR p.ts >= kavach.range_edge(usage_between.since, usage_between.until, usage_between.whole, 3)
               AND p.ts < usage_between.until)
          AND (p.id >= kavach.uuid7_since(usage_between.since)
               AND p.id < kavach.uuid7_until(kavach.range_edge(usage_between.since, usage_between.until, usage_between.whole, 0))
               OR p.id >= kavach.uuid7_since(kavach.range_edge(usage_between.since, usage_between.until, usage_between.whole, 3))
               AND p.id < kavach.uuid7_until(usage_between.until)
               -- by hand
               OR p.id >= kavach.uuid7_since('-infinity')
               AND p.id < kavach.uuid7_since(CASE WHEN isfinite(usage_between.since) THEN usage_between.since
                                                  ELSE kavach.range_edge(usage_between.since, usage_between.until, usage_between.whole, 3) END, true)
               OR p.id >= kavach.uuid7_until(CASE WHEN isfinite(usage_between.until) THEN usage_between.until
                                                  ELSE kavach.range_edge(usage_between.since, usage_between.until, usage_between.whole, 0) END, true)
               AND p.id <= kavach.uuid7_until('infinity')))
   UNION ALL
  SELECT n.*
    FROM kavach.no_rows(kavach.require_months(usage_between.since, kavach.range_edge(usage_between.since, usage_between.until, usage_between.whole, 0)),
                        NULL::kavach.usage_part) n
   UNION ALL
  SELECT n.*
    FROM kavach.no_rows(kavach.require_months(kavach.range_edge(usage_between.since, usage_between.until, usage_between.whole, 3), usage_between.until),
                        NULL::kavach.usage_part) n;
END;

COMMENT ON FUNCTION kavach.usage_between(timestamptz, timestamptz, text) IS
'What the ledger''s rows from since (inclusive) to until (exclusive) add up to, in pieces: whole UTC months and days as sums, pieces of days as rows, and the rows that are not in the sums yet. Neither bound is NULL; infinity leaves a side open. Every report sums these.
whole: monthly; daily, where days are to be told apart; together, where nobody is: of days, all agents''; NULL: rows alone.
The rows of a piece of a day are found by the time in their ids. One that is put in by hand is found, too, if its id is the UUIDv7 of its ts, or of no time in the months of the range.
Error KV005 where rows of a month that was dropped are needed.';

CREATE OR REPLACE VIEW kavach.usage_by_agent AS
SELECT agent_id,
       sum(calls)::bigint AS calls, sum(denied)::bigint AS denied, sum(calls_without_cost)::bigint AS calls_without_cost, sum(tokens_cost) AS tokens_cost
  FROM kavach.usage_part
 WHERE part IN ('monthly', 'tail')
 GROUP BY agent_id;

COMMENT ON VIEW kavach.usage_by_agent IS 'Usage of every agent, over all time. For a range use kavach_cost_by_agent.';
COMMENT ON COLUMN kavach.usage_by_agent.agent_id IS 'The agent; NULL: refused calls of unknown agents.';

CREATE OR REPLACE VIEW kavach.usage_by_user AS
SELECT user_id,
       sum(calls)::bigint AS calls, sum(denied)::bigint AS denied, sum(calls_without_cost)::bigint AS calls_without_cost, sum(tokens_cost) AS tokens_cost
  FROM kavach.usage_part
 WHERE part IN ('monthly', 'tail')
 GROUP BY user_id;

COMMENT ON VIEW kavach.usage_by_user IS 'Usage of every user, over all time. For a range use kavach_cost_by_user.';
COMMENT ON COLUMN kavach.usage_by_user.user_id IS 'The user; NULL: refused calls of unknown agents.';

CREATE OR REPLACE VIEW kavach.usage_by_day AS
SELECT day,
       sum(calls)::bigint AS calls, sum(denied)::bigint AS denied, sum(calls_without_cost)::bigint AS calls_without_cost, sum(tokens_cost) AS tokens_cost
  FROM kavach.usage_part
 WHERE part IN ('together', 'tail')
 GROUP BY day;

COMMENT ON VIEW kavach.usage_by_day IS 'Usage of every UTC day that has ledger rows. For a range or one agent use kavach_cost_by_day.';
COMMENT ON COLUMN kavach.usage_by_day.day IS 'The UTC day.';

DO $$
DECLARE
  c record;
BEGIN
  FOR c IN
    SELECT a.attrelid::regclass AS view, a.attname AS name, coalesce(col_description('kavach.usage_daily'::regclass, b.attnum),
                                                                     col_description('kavach.usage'::regclass, u.attnum)) AS text
      FROM pg_attribute a
      LEFT JOIN pg_attribute b ON b.attrelid = 'kavach.usage_daily'::regclass AND b.attname = a.attname AND b.atttypid <> 'date'::regtype AND b.attname <> 'tokens_cost'
      LEFT JOIN pg_attribute u ON u.attrelid = 'kavach.usage'::regclass AND u.attname = a.attname
     WHERE a.attrelid IN ('kavach.usage'::regclass, 'kavach.usage_entry'::regclass, 'kavach.usage_part'::regclass)
       AND a.attnum > 0 AND col_description(a.attrelid, a.attnum) IS NULL
     UNION ALL
    SELECT v.name::regclass, n.name, n.text
      FROM (VALUES ('kavach.usage_by_agent'), ('kavach.usage_by_user'), ('kavach.usage_by_day')) AS v (name),
           (VALUES ('calls', 'Authorize decisions.'), ('denied', 'Those refused.'), ('calls_without_cost', 'Those admitted that gave no cost.'),
                   ('tokens_cost', 'sum(tokens_cost) over the ledger: the bill.')) AS n (name, text)
  LOOP
    EXECUTE format('COMMENT ON COLUMN %s.%I IS %L', c.view, c.name, c.text);
  END LOOP;
END
$$;

CREATE OR REPLACE FUNCTION @extschema@.kavach_cost_by_agent(
  since timestamptz,
  until timestamptz)
RETURNS TABLE (agent_id text, calls bigint, denied bigint, calls_without_cost bigint, tokens_cost numeric)
LANGUAGE sql STABLE PARALLEL SAFE
BEGIN ATOMIC
  SELECT u.agent_id, sum(u.calls)::bigint, sum(u.denied)::bigint, sum(u.calls_without_cost)::bigint, sum(u.tokens_cost)
    FROM kavach.usage_between(kavach.range_start(kavach_cost_by_agent.since, kavach_cost_by_agent.until),
                              coalesce(kavach_cost_by_agent.until, 'infinity'), 'monthly') u
   GROUP BY u.agent_id;
END;

COMMENT ON FUNCTION @extschema@.kavach_cost_by_agent(timestamptz, timestamptz) IS
'Usage by agent from since (inclusive) to until (exclusive); NULL for no bound.
agent_id: NULL: refused calls of unknown agents; calls: authorize decisions; denied: those refused; calls_without_cost: those admitted that gave no cost; tokens_cost: the sum over the ledger.
Errors: 22023 where since is after until.';

CREATE OR REPLACE FUNCTION @extschema@.kavach_cost_by_user(
  since timestamptz,
  until timestamptz)
RETURNS TABLE (user_id text, calls bigint, denied bigint, calls_without_cost bigint, tokens_cost numeric)
LANGUAGE sql STABLE PARALLEL SAFE
BEGIN ATOMIC
  SELECT u.user_id, sum(u.calls)::bigint, sum(u.denied)::bigint, sum(u.calls_without_cost)::bigint, sum(u.tokens_cost)
    FROM kavach.usage_between(kavach.range_start(kavach_cost_by_user.since, kavach_cost_by_user.until),
                              coalesce(kavach_cost_by_user.until, 'infinity'), 'monthly') u
   GROUP BY u.user_id;
END;

COMMENT ON FUNCTION @extschema@.kavach_cost_by_user(timestamptz, timestamptz) IS
'Usage by user, one row each, from since (inclusive) to until (exclusive); NULL for no bound. The columns are those of kavach_cost_by_agent; NULL: refused calls of unknown agents.
Errors: 22023 where since is after until.';

CREATE OR REPLACE FUNCTION @extschema@.kavach_cost_by_day(
  agent_id text,
  since    timestamptz,
  until    timestamptz)
RETURNS TABLE (day date, calls bigint, denied bigint, calls_without_cost bigint, tokens_cost numeric)
LANGUAGE sql STABLE PARALLEL SAFE
BEGIN ATOMIC
  SELECT u.day, sum(u.calls)::bigint, sum(u.denied)::bigint, sum(u.calls_without_cost)::bigint, sum(u.tokens_cost)
    FROM kavach.usage_between(kavach.range_start(kavach_cost_by_day.since, kavach_cost_by_day.until),
                              coalesce(kavach_cost_by_day.until, 'infinity'),
                              CASE WHEN kavach_cost_by_day.agent_id IS NULL THEN 'together' ELSE 'daily' END) u
   WHERE kavach_cost_by_day.agent_id IS NULL OR u.agent_id = kavach_cost_by_day.agent_id
   GROUP BY u.day;
END;

COMMENT ON FUNCTION @extschema@.kavach_cost_by_day(text, timestamptz, timestamptz) IS
'Usage by UTC day, of one agent or of all (NULL), from since (inclusive) to until (exclusive); NULL for no bound. Days without ledger rows are absent. The other columns are those of kavach_cost_by_agent.
Errors: 22023 where since is after until.';

CREATE OR REPLACE FUNCTION @extschema@.kavach_billing_report(year int, month int)
RETURNS TABLE (tenant_id text, user_id text, calls bigint, denied bigint, calls_without_cost bigint, tokens_cost numeric)
LANGUAGE sql STABLE PARALLEL SAFE
BEGIN ATOMIC
  SELECT u.tenant_id, u.user_id, sum(u.calls)::bigint, sum(u.denied)::bigint, sum(u.calls_without_cost)::bigint, sum(u.tokens_cost)
    FROM kavach.usage_between(kavach.month_start(kavach_billing_report.year, kavach_billing_report.month),
                              kavach.month_end(kavach_billing_report.year, kavach_billing_report.month), 'monthly') u
   GROUP BY u.tenant_id, u.user_id;
END;

COMMENT ON FUNCTION @extschema@.kavach_billing_report(int, int) IS
'The bill of a UTC month: usage by tenant and user. The other columns are those of kavach_cost_by_agent; NULL, NULL: refused calls of unknown agents.
Errors: 22004, 22023 no such month.';

-- The general form.

CREATE FUNCTION kavach.report_whole(group_by text[], bucket text)
RETURNS text
LANGUAGE c IMMUTABLE PARALLEL SAFE
AS 'MODULE_PATHNAME', 'kavach_report_whole';

COMMENT ON FUNCTION kavach.report_whole(text[], text) IS
  'What tells such groups and buckets apart, for kavach.usage_between: monthly or daily sums, or totals; NULL where only rows do. Errors: 22004 a NULL among the groups; 22023 an unknown group or bucket.';

CREATE FUNCTION kavach.groups_by(group_by text[], column_name text)
RETURNS boolean
LANGUAGE c IMMUTABLE PARALLEL SAFE
AS 'MODULE_PATHNAME', 'kavach_groups_by';

COMMENT ON FUNCTION kavach.groups_by(text[], text) IS
  'Whether a report is grouped by this column of kavach.usage_part. Errors: as kavach.report_whole.';

CREATE FUNCTION kavach.check_report(group_by text[], bucket text, since timestamptz, until timestamptz, fill_gaps boolean)
RETURNS boolean
LANGUAGE c IMMUTABLE PARALLEL SAFE
AS 'MODULE_PATHNAME', 'kavach_check_report';

COMMENT ON FUNCTION kavach.check_report(text[], text, timestamptz, timestamptz, boolean) IS
  'True, once the arguments of kavach_usage_report are checked: a report that comes to look at no row must refuse them, too. Errors: as kavach.report_whole; 22004 fill_gaps is NULL; 22023 gaps to fill without bucket or bounds.';

CREATE FUNCTION kavach.label_keys(group_by text[])
RETURNS text[]
LANGUAGE c IMMUTABLE PARALLEL SAFE
AS 'MODULE_PATHNAME', 'kavach_label_keys';

COMMENT ON FUNCTION kavach.label_keys(text[]) IS
  'Of what a report is grouped by, the keys of metadata: KEY of each metadata.KEY.';

CREATE FUNCTION kavach.usage_grouped(since timestamptz, until timestamptz, group_by text[], bucket text)
RETURNS TABLE (
  bucket_start timestamp, tenant_id text, user_id text, agent_id text, provider text, model text, action text, resource text, labels jsonb,
  calls bigint, denied bigint, calls_without_cost bigint, tokens_cost numeric,
  tokens_input numeric, tokens_output numeric, tokens_cache_read numeric, tokens_cache_write numeric, cost numeric)
LANGUAGE sql STABLE PARALLEL SAFE
BEGIN ATOMIC
  SELECT CASE WHEN usage_grouped.bucket <> 'none' THEN date_trunc(usage_grouped.bucket, u.ts AT TIME ZONE 'UTC') END,
         CASE WHEN kavach.groups_by(usage_grouped.group_by, 'tenant_id') THEN u.tenant_id END,
         CASE WHEN kavach.groups_by(usage_grouped.group_by, 'user_id') THEN u.user_id END,
         CASE WHEN kavach.groups_by(usage_grouped.group_by, 'agent_id') THEN u.agent_id END,
         CASE WHEN kavach.groups_by(usage_grouped.group_by, 'provider') THEN u.provider END,
         CASE WHEN kavach.groups_by(usage_grouped.group_by, 'model') THEN u.model END,
         CASE WHEN kavach.groups_by(usage_grouped.group_by, 'action') THEN u.action END,
         CASE WHEN kavach.groups_by(usage_grouped.group_by, 'resource') THEN u.resource END,
         CASE WHEN cardinality(kavach.label_keys(usage_grouped.group_by)) > 0 THEN
                (SELECT jsonb_object_agg(k.key, u.metadata -> k.key) FROM unnest(kavach.label_keys(usage_grouped.group_by)) AS k (key)) END,
         u.calls, u.denied, u.calls_without_cost, u.tokens_cost,
         u.tokens_input, u.tokens_output, u.tokens_cache_read, u.tokens_cache_write, u.cost
    FROM kavach.usage_between(usage_grouped.since, usage_grouped.until,
                              kavach.report_whole(usage_grouped.group_by, usage_grouped.bucket)) u;
END;

COMMENT ON FUNCTION kavach.usage_grouped(timestamptz, timestamptz, text[], text) IS
  'kavach.usage_between with the columns that kavach_usage_report groups by, NULL in those it does not.';

CREATE FUNCTION @extschema@.kavach_usage_report(
  since     timestamptz DEFAULT NULL,
  until     timestamptz DEFAULT NULL,
  group_by  text[] DEFAULT NULL,
  bucket    text DEFAULT 'none',
  fill_gaps boolean DEFAULT false)
RETURNS TABLE (
  bucket_start timestamptz, tenant_id text, user_id text, agent_id text, provider text, model text, action text, resource text, labels jsonb,
  calls bigint, denied bigint, calls_without_cost bigint, tokens_cost numeric,
  tokens_input numeric, tokens_output numeric, tokens_cache_read numeric, tokens_cache_write numeric, cost numeric)
LANGUAGE sql STABLE PARALLEL SAFE
BEGIN ATOMIC
  SELECT r.bucket_start AT TIME ZONE 'UTC', r.tenant_id, r.user_id, r.agent_id, r.provider, r.model, r.action, r.resource, r.labels,
         sum(r.calls)::bigint, sum(r.denied)::bigint, sum(r.calls_without_cost)::bigint, sum(r.tokens_cost),
         sum(r.tokens_input), sum(r.tokens_output), sum(r.tokens_cache_read), sum(r.tokens_cache_write), sum(r.cost)
    FROM (SELECT u.*
            FROM kavach.usage_grouped(kavach.range_start(kavach_usage_report.since, kavach_usage_report.until),
                                      coalesce(kavach_usage_report.until, 'infinity'),
                                      kavach_usage_report.group_by, coalesce(kavach_usage_report.bucket, 'none')) u
           UNION ALL
          -- of every group that there is, nothing in every bucket
          SELECT g.bucket_start, k.tenant_id, k.user_id, k.agent_id, k.provider, k.model, k.action, k.resource, k.labels,
                 0, 0, 0, 0, 0, 0, 0, 0, 0
            FROM (SELECT u.tenant_id, u.user_id, u.agent_id, u.provider, u.model, u.action, u.resource, u.labels
                    FROM kavach.usage_grouped(kavach.range_start(kavach_usage_report.since, kavach_usage_report.until),
                                              coalesce(kavach_usage_report.until, 'infinity'),
                                              kavach_usage_report.group_by, coalesce(kavach_usage_report.bucket, 'none')) u
                   WHERE cardinality(kavach_usage_report.group_by) > 0
                   UNION
                  SELECT NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL
                   WHERE coalesce(cardinality(kavach_usage_report.group_by), 0) = 0) k
           CROSS JOIN (SELECT DISTINCT date_trunc(kavach_usage_report.bucket, h.hour)
                         FROM generate_series(
                                CASE WHEN kavach_usage_report.fill_gaps
                                      AND kavach.check_report(kavach_usage_report.group_by, kavach_usage_report.bucket,
                                                              kavach_usage_report.since, kavach_usage_report.until, kavach_usage_report.fill_gaps)
                                     THEN date_trunc(kavach_usage_report.bucket, kavach_usage_report.since AT TIME ZONE 'UTC') END,
                                kavach_usage_report.until AT TIME ZONE 'UTC' - interval '1 us', interval '1 hour') AS h (hour)) AS g (bucket_start)
           WHERE kavach_usage_report.fill_gaps) r
   WHERE kavach.check_report(kavach_usage_report.group_by, kavach_usage_report.bucket,
                             kavach_usage_report.since, kavach_usage_report.until, kavach_usage_report.fill_gaps)
   GROUP BY r.bucket_start, r.tenant_id, r.user_id, r.agent_id, r.provider, r.model, r.action, r.resource, r.labels;
END;

COMMENT ON FUNCTION @extschema@.kavach_usage_report(timestamptz, timestamptz, text[], text, boolean) IS
'Usage from since (inclusive) to until (exclusive), NULL for no bound, by what is asked for.
group_by: any of tenant, user, agent, provider, model, action, resource, and metadata.KEY for a key of the metadata; NULL: one group. What it does not name is NULL in every row; labels has the metadata: {"KEY": value}, null where a row has none.
bucket: hour, day or month (bucket_start: UTC) or none. fill_gaps: every group that there is in the range has a row for each bucket, of zeros where it has no usage; needs both bounds.
Months, days, tenants, users, agents, providers and models are summed up beforehand. Hours, actions, resources and metadata only the rows of the ledger know: that takes as long as there are rows in the range.
By provider or model, what is not settled, or was recorded without one, is NULL. calls, denied, calls_without_cost and tokens_cost are those of kavach_cost_by_agent; token classes and cost are as far as known.
Errors: 22023 an unknown group or bucket, since after until, gaps without bucket or bounds; 22004 a NULL among the groups. KV005 what only rows know, of a month that was dropped.';

CREATE VIEW kavach.agents AS
SELECT a.agent_id, a.user_id, a.tenant_id, a.name, a.status, a.status_reason, a.status_changed_at, a.expires_at, a.metadata, a.created_at
  FROM kavach.agent a;

COMMENT ON VIEW kavach.agents IS 'The agents, for readers.';

CREATE VIEW kavach.permissions AS
SELECT p.permission_id, p.agent_id, p.resource, p.actions, p.constraints, p.created_at
  FROM kavach.permission p;

COMMENT ON VIEW kavach.permissions IS 'What agents may do, for readers.';

CREATE VIEW kavach.policies AS
SELECT p.policy_id, p.scope, p.subject, p.each, p.action, p.enabled, p.created_at,
       (SELECT jsonb_object_agg(k.key, l.amount)
          FROM kavach.budget_limit l JOIN kavach.limit_keys() k USING (measure, period)
         WHERE l.policy_id = p.policy_id) AS limits
  FROM kavach.budget_policy p;

COMMENT ON VIEW kavach.policies IS 'The budgets with their limits, for readers. How they stand is in kavach.budget_status.';

DO $$
DECLARE
  c record;
BEGIN
  FOR c IN
    SELECT v.view, a.attname, coalesce(col_description(v.source, b.attnum), 'Its limits, as kavach_create_policy takes them.') AS text
      FROM (VALUES ('kavach.agents'::regclass, 'kavach.agent'::regclass), ('kavach.permissions', 'kavach.permission'),
                   ('kavach.policies', 'kavach.budget_policy')) AS v (view, source)
      JOIN pg_attribute a ON a.attrelid = v.view AND a.attnum > 0
      LEFT JOIN pg_attribute b ON b.attrelid = v.source AND b.attname = a.attname
  LOOP
    EXECUTE format('COMMENT ON COLUMN %s.%I IS %L', c.view, c.attname, c.text);
  END LOOP;
END
$$;

-- ---- export.sql ----

CREATE OR REPLACE FUNCTION @extschema@.kavach_export(
  since timestamptz DEFAULT NULL,
  until timestamptz DEFAULT NULL)
RETURNS TABLE (
  id uuid, ts text, batch bigint, kind text, agent_id text, user_id text, tenant_id text,
  action text, resource text, arguments jsonb, ip inet, result text, code text, reason text,
  permission_id bigint, policy_id text, tokens_requested bigint, min_tokens bigint, tokens_released bigint,
  tokens_cost bigint, settles uuid, request_id text, provider text, model text,
  tokens_input bigint, tokens_output bigint, tokens_cache_read bigint, tokens_cache_write bigint,
  cost numeric, metadata jsonb)
LANGUAGE sql STABLE PARALLEL SAFE
BEGIN ATOMIC
  SELECT l.id, to_char(l.ts AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"'), l.batch, l.kind,
         l.agent_id, l.user_id, l.tenant_id, l.action, l.resource, l.arguments, l.ip, l.result, l.code, l.reason,
         l.permission_id, l.policy_id, l.tokens_requested, l.min_tokens, l.tokens_released,
         l.tokens_cost, l.settles, l.request_id, l.provider, l.model,
         l.tokens_input, l.tokens_output, l.tokens_cache_read, l.tokens_cache_write,
         l.cost, l.metadata
    FROM (SELECT n.*
            FROM kavach.no_rows(kavach.kept_since(kavach.range_start(kavach_export.since, kavach_export.until), kavach_export.until),
                                NULL::kavach.ledger) n
           UNION ALL
          SELECT * FROM kavach.ledger) l
   WHERE l.ts >= kavach.range_start(kavach_export.since, kavach_export.until)
     AND l.ts >= kavach.kept_since(kavach_export.since, kavach_export.until)
     AND l.ts < coalesce(kavach_export.until, 'infinity');
END;

COMMENT ON FUNCTION @extschema@.kavach_export(timestamptz, timestamptz) IS
'The ledger''s rows from since (inclusive) to until (exclusive) for COPY (SELECT * FROM kavach_export(...)) TO ... (FORMAT csv, HEADER); NULL for no bound.
The columns are those of kavach.audit_log; ts is ISO 8601 UTC text whatever TimeZone and DateStyle. Rows come in no particular order: add ORDER BY id where it matters. Without since: from the end of the last month on that was dropped.
Errors: 22023 where since is after until; KV005 in a month that was dropped.';

COMMENT ON FUNCTION @extschema@.kavach_export_json(timestamptz, timestamptz) IS
'As kavach_export, one JSON object a row. COPY''s text format doubles backslashes; what keeps JSON lines whole is
COPY (SELECT * FROM kavach_export_json(...)) TO ... (FORMAT csv, QUOTE E''\x01'', DELIMITER E''\x02''), as JSON has neither of the two.
Errors: 22023 where since is after until; KV005 in a month that was dropped.';

-- ---- role.sql ----

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

CREATE OR REPLACE FUNCTION @extschema@.kavach_grant_role(role regrole, access text)
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

-- ---- who may do what ----

-- New is what was not there: it is the extension's owner's (a successor its predecessor's), and nobody
-- else's, whatever default privileges say.
DO $$
DECLARE
  object record;
BEGIN
  FOR object IN
    SELECT CASE m.kind WHEN 'TABLE' THEN format('TABLE %s', m.oid::regclass) ELSE format('FUNCTION %s', m.oid::regprocedure) END AS name,
           m.owner, coalesce((SELECT f.owner FROM kavach.former f WHERE (f.kind, f.name) = (m.kind, m.name)), e.extowner) AS new_owner,
           ARRAY(SELECT DISTINCT CASE WHEN a.grantee = 0 THEN 'PUBLIC' ELSE a.grantee::regrole::text END
                   FROM aclexplode(coalesce(m.acl, acldefault((CASE m.kind WHEN 'TABLE' THEN 'r' ELSE 'f' END)::"char", m.owner))) a
                  WHERE a.grantee <> m.owner) AS grantees
      FROM kavach.former_member() m
      JOIN pg_extension e ON e.extname = 'kavach'
     WHERE m.name NOT IN ('grant_unrecorded', 'former_member')
       AND NOT EXISTS (SELECT FROM kavach.former f WHERE (f.classid, f.oid) = (m.classid, m.oid))
  LOOP
    IF object.owner <> object.new_owner THEN
      EXECUTE format('ALTER %s OWNER TO %s', object.name, object.new_owner::regrole);
    END IF;
    IF object.grantees <> '{}' THEN
      EXECUTE format('REVOKE ALL ON %s FROM %s', object.name, array_to_string(object.grantees, ', '));
    END IF;
  END LOOP;
END
$$;

-- What others than the owner have on that of which pg_monitor gets something is out of the way meanwhile.
DO $$
DECLARE
  grantee record;
BEGIN
  FOR grantee IN
    SELECT DISTINCT CASE f.kind WHEN 'TABLE' THEN format('TABLE %s', f.oid::regclass)
                                WHEN 'SCHEMA' THEN format('SCHEMA %I', f.name)
                                ELSE format('FUNCTION %s', f.oid::regprocedure) END AS object,
           CASE WHEN a.grantee = 0 THEN 'PUBLIC' ELSE a.grantee::regrole::text END AS name
      FROM kavach.former f, aclexplode(f.acl) a
     WHERE f.name IN ('kavach', 'counters', 'counter_stats', 'read_counters', 'read_counter_stats') AND a.grantee <> f.owner
  LOOP
    PERFORM kavach.grant_unrecorded(format('REVOKE ALL ON %s FROM %s CASCADE', grantee.object, grantee.name));
  END LOOP;
END
$$;

COMMENT ON VIEW kavach.counters IS 'The usage of this database that is in memory, by subject and window; figures are NULL in one that is not loaded yet.';
COMMENT ON COLUMN kavach.counters.subject IS 'The agent, user, tenant or permission id, of more than 37 bytes the beginning; NULL for all.';
COMMENT ON COLUMN kavach.counters.pins IS 'How often open transactions hold it, so that it stays.';
COMMENT ON COLUMN kavach.counter_stats.evictions IS 'Subjects, and rates, that made room for others.';

-- Who watches the server sees how counters, cache and worker do, and of the ledger how many rows are in which batch.
GRANT USAGE ON SCHEMA kavach TO pg_monitor;
GRANT SELECT ON kavach.counters, kavach.counter_stats, kavach.cache_stats, kavach.batch_status, kavach.worker_status TO pg_monitor;
GRANT EXECUTE ON FUNCTION kavach.read_counters(), kavach.read_counter_stats(), kavach.read_cache_stats(), kavach.read_worker(), kavach.batch_holders() TO pg_monitor;

-- What roles had on these and on the predecessors of what is new, they have again, from the owner.
DO $$
DECLARE
  had record;
BEGIN
  FOR had IN
    SELECT CASE m.kind WHEN 'TABLE' THEN format('TABLE %s', m.oid::regclass)
                       WHEN 'SCHEMA' THEN format('SCHEMA %I', m.name)
                       ELSE format('FUNCTION %s', m.oid::regprocedure) END AS object,
           CASE WHEN a.grantee = 0 THEN 'PUBLIC' ELSE a.grantee::regrole::text END AS grantee,
           a.privilege_type, bool_or(a.is_grantable) AS is_grantable
      FROM kavach.former f
     CROSS JOIN LATERAL aclexplode(f.acl) a
      JOIN kavach.former_member() m ON (m.kind, m.name) = (f.kind, f.name)
     WHERE a.grantee <> f.owner
       AND (m.oid <> f.oid OR m.name IN ('kavach', 'counters', 'counter_stats', 'read_counters', 'read_counter_stats'))
     GROUP BY 1, 2, 3
  LOOP
    PERFORM kavach.grant_unrecorded(format('GRANT %s ON %s TO %s%s', had.privilege_type, had.object, had.grantee,
                                           CASE WHEN had.is_grantable THEN ' WITH GRANT OPTION' END));
  END LOOP;
  PERFORM kavach.grant_unrecorded(format('SELECT @extschema@.kavach_grant_role(%L, %L)', r.role::text, r.access))
     FROM kavach.former_access r;
END
$$;

DROP TABLE kavach.former, kavach.former_access;
DROP FUNCTION kavach.former_member();
DROP FUNCTION kavach.grant_unrecorded(text);
