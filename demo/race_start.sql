-- Eight agents of one tenant, which may spend 5,000 tokens in all.
\set QUIET on
SELECT count(kavach_create_agent('agt_race_' || n, user_id => 'racer_' || n, tenant_id => 'race',
               permissions => '[{"resource": "*", "actions": ["*"]}]'))
  FROM generate_series(1, 8) AS n \g /dev/null
SELECT kavach_create_policy(tenant_id => 'race', limits => '{"max_tokens_cost_total": 5000}')
\g /dev/null

\echo '--- A race: 32 sessions at once for one budget of 5,000 tokens -----------------'
\echo
