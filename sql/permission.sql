-- permission.sql
--   What agents may do: resource patterns, actions and constraints.
--   How they are matched is in src/decide/permission.c.
--
-- No foreign key, here and in policy.sql: pg_restore -j copies the tables of an
-- extension in any order.

CREATE TABLE kavach.permission (
  permission_id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  agent_id      text NOT NULL,
  resource      text NOT NULL,
  actions       text[] NOT NULL,
  constraints   jsonb NOT NULL DEFAULT '{}',
  created_at    timestamptz NOT NULL DEFAULT kavach.clock_now()
);

CREATE INDEX permission_agent_id_idx ON kavach.permission (agent_id, permission_id);

SELECT pg_catalog.pg_extension_config_dump('kavach.permission', '');
SELECT kavach.watch('kavach.permission', 'agent');
SELECT pg_catalog.pg_extension_config_dump('kavach.permission_permission_id_seq', '');

COMMENT ON TABLE kavach.permission IS 'What agents may do. Written by kavach_grant_permission and kavach_revoke_permission.';
COMMENT ON COLUMN kavach.permission.permission_id IS 'Permissions are tried in this order.';
COMMENT ON COLUMN kavach.permission.agent_id IS 'The agent that holds the permission.';
COMMENT ON COLUMN kavach.permission.resource IS 'Colon-separated pattern: * is one segment, a trailing ** any further ones, * alone everything.';
COMMENT ON COLUMN kavach.permission.actions IS 'The actions allowed; * for any.';
COMMENT ON COLUMN kavach.permission.constraints IS 'max_calls_per_hour, allowed_arg_patterns, time_window, ip_allowlist; all of them must hold.';
COMMENT ON COLUMN kavach.permission.created_at IS 'When it was granted.';
COMMENT ON SEQUENCE kavach.permission_permission_id_seq IS 'Ids of permissions.';

CREATE FUNCTION kavach.check_permission(resource text, actions text[], constraints jsonb)
RETURNS boolean
LANGUAGE c IMMUTABLE PARALLEL SAFE
AS 'MODULE_PATHNAME', 'kavach_check_permission';

COMMENT ON FUNCTION kavach.check_permission(text, text[], jsonb) IS
  'Raises an error unless pattern, actions and constraints are well formed. Errors: 22004, 22023, 22001, 22P02, 22007, 22008.';

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

CREATE FUNCTION @extschema@.kavach_grant_permission(
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

CREATE FUNCTION @extschema@.kavach_revoke_permission(permission_id bigint)
RETURNS boolean
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
#variable_conflict use_column
BEGIN
  IF kavach_revoke_permission.permission_id IS NULL THEN
    RAISE EXCEPTION 'permission_id must not be NULL'
      USING ERRCODE = 'null_value_not_allowed';
  END IF;
  DELETE FROM kavach.permission p WHERE p.permission_id = kavach_revoke_permission.permission_id;
  RETURN FOUND;
END
$$;

COMMENT ON FUNCTION @extschema@.kavach_revoke_permission(bigint) IS
'Takes a permission away: true if it was there. The ledger goes on naming it in permission_id.
Errors: 22004 NULL.';

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
