# cache.pl: what one session has looked up serves all of them; so small that entries come and go all the time, with
# sessions that are cancelled and terminated while they fill it, and with changes that commit meanwhile, it gives what
# the tables say.
use strict;
use warnings;
use FindBin;
use lib $FindBin::RealBin;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Session;
use Test::More;

my $node = PostgreSQL::Test::Cluster->new('cache');
$node->init(allows_streaming => 1);
$node->append_conf('postgresql.conf', "shared_preload_libraries = 'kavach'\nkavach.clock = '2026-03-10 12:00:00+00'");
$node->start;
$node->safe_psql('postgres', q{
	CREATE EXTENSION kavach;
	INSERT INTO kavach.agent (agent_id, user_id, tenant_id)
	SELECT 'agt_' || n, 'user_' || n % 40, CASE WHEN n % 7 > 0 THEN 'tenant_' || n % 6 END FROM generate_series(1, 400) n;
	-- of all lengths, so that entries take one chunk or many
	INSERT INTO kavach.permission (agent_id, resource, actions, constraints)
	SELECT 'agt_' || n, 'tool:' || repeat('x', n), ARRAY['run', repeat('a', n % 200 + 1)],
	       CASE WHEN n % 3 = 0 THEN jsonb_build_object('ip_allowlist', ARRAY['10.0.0.0/8', format('192.168.%s.0/24', n % 256)], 'allowed_arg_patterns', ARRAY['a*', n::text]) ELSE '{}' END
	  FROM generate_series(1, 400) n;
	INSERT INTO kavach.permission (agent_id, resource, actions) SELECT 'agt_7', 'other:' || n, ARRAY['run'] FROM generate_series(1, 300) n;
	SELECT count(kavach_create_policy(agent_id => 'agt_' || n, limits => jsonb_build_object('max_tokens_cost_total', 5000 + n))) FROM generate_series(1, 400, 5) n;
	SELECT count(kavach_create_policy(user_id => 'user_' || n, limits => jsonb_build_object('max_tokens_cost_total', 4000 + n))) FROM generate_series(0, 39, 3) n;
	SELECT count(kavach_create_policy(tenant_id => 'tenant_' || n, limits => jsonb_build_object('max_tokens_cost_total', 4500 + n))) FROM generate_series(0, 5, 2) n;
	SELECT kavach_create_policy(each => 'agent', limits => '{"max_tokens_cost_total": 4800}'),
	       kavach_create_policy(each => 'user', limits => '{"max_tokens_cost_total": 4020}'),
	       kavach_create_policy(each => 'tenant', limits => '{"max_tokens_cost_total": 4400, "max_calls_total": 30}'),
	       kavach_create_policy(all_agents => true, limits => '{"max_tokens_cost_total": 9000}', policy_id => 'pol_all');

	-- What each agent has left, by the tables alone; nothing was used.
	CREATE VIEW expected AS
	SELECT a.agent_id, least(min(l.amount), 9223372036854775807) AS tokens
	  FROM kavach.agent a
	 CROSS JOIN LATERAL (VALUES ('agent', a.agent_id), ('user', a.user_id), ('tenant', a.tenant_id), ('all', NULL)) AS s (scope, subject)
	  JOIN kavach.budget_policy p ON p.scope = s.scope AND p.enabled
	   AND CASE WHEN p.each THEN s.subject IS NOT NULL ELSE p.subject IS NOT DISTINCT FROM s.subject END
	  JOIN kavach.budget_limit l ON l.policy_id = p.policy_id AND l.measure = 'tokens'
	 WHERE NOT (p.each AND EXISTS (SELECT FROM kavach.budget_policy n WHERE n.enabled AND n.scope = s.scope AND n.subject = s.subject))
	 GROUP BY a.agent_id;
	CREATE VIEW wrong AS
	SELECT agent_id, tokens, c.tokens_remaining, p.code
	  FROM expected,
	       kavach_check_budget(agent_id, 0) c,
	       kavach_check_budget(agent_id, 0, 'run', 'tool:' || repeat('x', split_part(agent_id, '_', 2)::int), '{"x": "abc"}', '10.1.2.3') p
	 WHERE c.tokens_remaining IS DISTINCT FROM tokens OR p.code <> 'allowed'});

my ($one, $two);
sub stats { return map { int } split /\|/, $two->query('SELECT hits, misses, evictions, entries, bytes FROM kavach.cache_stats') }
sub restart
{
	my ($settings) = @_;
	$_->quit for grep { $_ } $one, $two;
	$node->append_conf('postgresql.conf', $settings);
	$node->restart;
	($one, $two) = map { Session->new($node) } 1 .. 2;
	return;
}

# ---- one cache for all sessions ----

restart('');
is(join('|', stats()), '0|0|0|0|0', 'nothing is there after a start');
is($one->query('SELECT count(*) FROM wrong'), '0', 'a session reads what is to be read');
my ($hits, $misses, $evictions, $entries) = stats();
is("$hits|$misses", '400|400', 'and misses each agent once');
is($entries, 400 + 40 + 6 + 1, 'then agents, users, tenants are there, and what binds everybody');
is($evictions, 0, 'and nothing had to go');
my $new = Session->new($node);
is($new->query('SELECT count(*) FROM wrong'), '0', 'a new session gets the same');
is(join('|', (stats())[0, 1]), join('|', $hits + 800, $misses), 'without reading anything');

# Of an agent that nobody has called, its own is read; of its user, tenant and everybody only what nobody has read yet.
$node->safe_psql('postgres', q{
	INSERT INTO kavach.agent (agent_id, user_id, tenant_id) VALUES ('cold_1', 'user_1', 'tenant_1'), ('cold_2', 'user_1', NULL), ('cold_3', 'user_new', 'tenant_1'), ('cold_4', 'user_new', 'tenant_new'), ('cold_5', 'user_new', 'tenant_new')});
sub searches
{
	my ($agent) = @_;
	my $scans = q{SELECT relname, seq_scan + idx_scan AS n FROM pg_stat_xact_user_tables
		WHERE schemaname = 'kavach' AND relname IN ('agent', 'permission', 'budget_policy', 'budget_baseline')};
	return $new->query(qq{BEGIN; CREATE TEMP TABLE before ON COMMIT DROP AS $scans;
		DO \$\$ BEGIN PERFORM kavach_check_budget('$agent', 0); END \$\$;
		SELECT string_agg(relname || ' ' || s.n - b.n, ', ' ORDER BY relname) FROM ($scans) s JOIN before b USING (relname); COMMIT});
}
is(searches('cold_1'), 'agent 1, budget_baseline 1, budget_policy 1, permission 1', 'an agent of a user who is known');
is(searches('cold_1'), 'agent 0, budget_baseline 0, budget_policy 0, permission 0', 'is known from then on');
is(searches('cold_2'), 'agent 1, budget_baseline 1, budget_policy 1, permission 1', 'one without a tenant');
is(searches('cold_3'), 'agent 1, budget_baseline 2, budget_policy 2, permission 1', 'of a new user');
is(searches('cold_4'), 'agent 1, budget_baseline 2, budget_policy 2, permission 1', 'of a new tenant');
is(searches('cold_5'), 'agent 1, budget_baseline 1, budget_policy 1, permission 1', 'of both, who are known by then');
$node->safe_psql('postgres', q{DELETE FROM kavach.agent WHERE agent_id LIKE 'cold%'});

# ---- who a change is about ----

# How many of the calls that look at all agents miss after a change.
sub missed
{
	my ($change) = @_;
	$new->query('SELECT count(*) FROM wrong') for 1 .. 2;
	$node->safe_psql('postgres', $change);
	my $before = (stats())[1];
	is($new->query('SELECT count(*) FROM wrong'), '0', "obeyed: $change");
	return (stats())[1] - $before;
}
is(missed(q{SELECT kavach_update_policy(policy_id, '{"max_tokens_cost_total": 4002}') FROM kavach.budget_policy WHERE subject = 'agt_6'}), 1, 'a limit of an agent is about that one');
is(missed(q{SELECT kavach_drop_policy(policy_id) FROM kavach.budget_policy WHERE subject = 'agt_11'}), 1, 'its end, too');
is(missed(q{SELECT kavach_create_policy(user_id => 'user_1', limits => '{"max_tokens_cost_total": 4010}')}), 1, 'a limit of a user: one reads it for all agents of his');
is(missed(q{SELECT kavach_create_policy(user_id => 'user_nobody', limits => '{"max_tokens_cost_total": 4010}')}), 0, 'of a user who has no agents');
is(missed(q{SELECT kavach_create_agent('agt_came', 'user_1'); SELECT kavach_grant_permission('agt_came', 'tool:**', '{run}'); SELECT kavach_drop_agent('agt_came')}), 0, 'of an agent that came and went');
cmp_ok(missed(q{TRUNCATE kavach.budget_baseline}), '>=', 400, 'a TRUNCATE is about all');
is(missed(q{SELECT kavach_update_policy('pol_all', '{"max_tokens_cost_total": 4030}')}), 1, 'what binds everybody is read by one');

# ---- while a commit is on its way ----

# It waits for a standby that is not there: what it changes is read from the tables meanwhile, and obeyed afterwards.
$node->append_conf('postgresql.conf', "synchronous_standby_names = 'nobody'");
$node->reload;
$new->until_row(q{SELECT 1 WHERE current_setting('synchronous_standby_names') = 'nobody'});
$new->query('SET synchronous_commit = off; SELECT count(*) FROM wrong');
$one->send(q{SELECT kavach_update_policy(policy_id, '{"max_tokens_cost_total": 3999}') FROM kavach.budget_policy WHERE subject = 'agt_6'});
$two->query('SET synchronous_commit = off');
$two->until_row("SELECT 1 FROM pg_stat_activity WHERE wait_event = 'SyncRep' AND backend_type = 'client backend'");
($hits, $misses) = stats();
is($new->query(q{SELECT tokens_remaining FROM kavach_check_budget('agt_6', 0)}), '4002', 'a limit that is being committed is not seen') for 1 .. 3;
is(join('|', (stats())[0, 1]), join('|', $hits, $misses + 3), 'and what is read of its agent is not kept');
is($new->query(q{SELECT tokens_remaining FROM kavach_check_budget('agt_1', 0)}) > 0, 1, 'others go on');
is(join('|', (stats())[0, 1]), join('|', $hits + 1, $misses + 3), 'with what is kept');
$node->append_conf('postgresql.conf', "synchronous_standby_names = ''");
$node->reload;
is($one->answer, 't', 'it is committed');
is($new->query(q{SELECT tokens_remaining FROM kavach_check_budget('agt_6', 0)}), '3999', 'and obeyed') for 1 .. 2;
is(join('|', (stats())[0, 1]), join('|', $hits + 2, $misses + 4), 'by whoever reads it, and then from the cache');
$new->quit;

# ---- so small that entries come and go ----

for my $size ('16kB', '64kB', '200kB')
{
	restart("kavach.cache_size = '$size'");
	is($_->query('SELECT count(*) FROM wrong'), '0', "$size: the answers are right") for $one, $two, $one;
	is($one->query(q{SELECT count(*) FROM (SELECT * FROM wrong ORDER BY md5(agent_id)) AS w}), '0', "$size: in any order");
	my @stats = stats();
	cmp_ok($stats[2], '>', 500, "$size: entries come and go");
	cmp_ok($stats[4], '<=', $size * 1024, "$size: within their room");
	cmp_ok($stats[3], '>', 10, "$size: and some are there");
}

# ---- whoever is cancelled or terminated ----

restart("kavach.cache_size = '16kB'");
my $cancelled = 0;
for my $timeout ((1 .. 12) x 5)
{
	$cancelled++ if $one->query("SET statement_timeout = $timeout; SELECT count(*) FROM wrong") =~ /57014/;
}
cmp_ok($cancelled, '>', 10, 'some were cancelled');
is($one->query('SET statement_timeout = 0; SELECT count(*) FROM wrong'), '0', 'the session goes on');
is($two->query('SELECT count(*) FROM wrong'), '0', 'others, too');
for my $round (1 .. 20)
{
	my $victim = Session->new($node);
	$victim->send('SELECT count(*) FROM wrong, generate_series(1, 1000)');
	$two->until_row("SELECT 1 FROM pg_stat_activity WHERE pid = $victim->{pid} AND state = 'active'");
	$two->query('SELECT count(*) FROM wrong') if $round % 4 == 0;
	$two->query("SELECT pg_terminate_backend($victim->{pid})");
	$two->until_gone($victim->{pid});
	$victim->quit;
}
is($_->query('SELECT count(*) FROM wrong'), '0', 'and so after terminations') for $one, $two;

# ---- changes that commit while others fill ----

# Two sessions ask all the time, and a third one sets a limit twice and asks: it must get what it has set last, also
# when somebody has read the tables in between.
for my $size ('16kB', '64MB')
{
	restart("kavach.cache_size = '$size'");
	my @askers = map { Session->new($node) } 1 .. 2;
	$_->send(q{DO $$ BEGIN FOR i IN 1 .. 1000000 LOOP PERFORM kavach_check_budget('agt_3', 0); EXIT WHEN pg_advisory_unlock_shared(1) OR EXISTS (SELECT FROM pg_locks WHERE locktype = 'advisory'); END LOOP; END $$}) for @askers;
	my $answer = $one->query(q{
		SET client_min_messages = error;
		CREATE TABLE IF NOT EXISTS told (asked bigint, told bigint);
		TRUNCATE told;
		CREATE OR REPLACE PROCEDURE race() LANGUAGE plpgsql AS $$
		DECLARE policies text[] := ARRAY[kavach_create_policy(agent_id => 'agt_3', limits => '{"max_tokens_cost_total": 1}'),
		                                 kavach_create_policy(user_id => 'user_3', limits => '{"max_tokens_cost_total": 1000}', action => 'throttle')];
		        told bigint;
		BEGIN
		  COMMIT;
		  FOR i IN 1 .. 1500 LOOP
		    PERFORM kavach_update_policy(policies[1 + i % 2], jsonb_build_object('max_tokens_cost_total', 3000));
		    COMMIT;
		    PERFORM kavach_update_policy(policies[1 + i % 2], jsonb_build_object('max_tokens_cost_total', i));
		    COMMIT;
		    SELECT tokens_remaining INTO told FROM kavach_check_budget('agt_3', 0);
		    IF told <> greatest(i - 1, 1) THEN
		      INSERT INTO told VALUES (i, told);
		    END IF;
		    COMMIT;
		  END LOOP;
		  PERFORM kavach_drop_policy(p) FROM unnest(policies) p;
		END $$;
		CALL race();
		SELECT count(*), min(asked) FROM told});
	is($answer, '0|', "$size: whoever has set a limit gets it");
	$two->query('SELECT pg_advisory_lock(1)');
	$_->answer for @askers;
	$_->quit for @askers;
	my @stats = stats();
	cmp_ok($stats[1], '>', 1000, "$size: and others have read meanwhile");
}

# A transaction that takes from an agent's limit what it gives to its user's, again and again: whoever asks gets the
# lower of the two, wherever it is.
$one->query(q{
	SELECT kavach_create_policy(agent_id => 'agt_3', limits => '{"max_tokens_cost_total": 10}', policy_id => 'pol_low'),
	       kavach_create_policy(user_id => 'user_3', limits => '{"max_tokens_cost_total": 20}', policy_id => 'pol_high')});
$one->send(q{DO $$ BEGIN FOR i IN 1 .. 2000 LOOP UPDATE kavach.budget_limit SET amount = 30 - amount WHERE policy_id IN ('pol_low', 'pol_high'); COMMIT; END LOOP; END $$});
is($two->query(q{
	CREATE PROCEDURE ask(OUT others text) LANGUAGE plpgsql AS $$
	DECLARE told bigint;
	BEGIN
	  FOR i IN 1 .. 1000000 LOOP
	    SELECT tokens_remaining INTO told FROM kavach_check_budget('agt_3', 0);
	    IF told <> 10 THEN
	      others := concat_ws(' ', others, told);
	    END IF;
	    EXIT WHEN i > 1000 AND NOT EXISTS (SELECT FROM pg_stat_activity WHERE state = 'active' AND query LIKE 'DO%30 - amount%');
	    COMMIT;
	  END LOOP;
	END $$;
	CALL ask(NULL)}), '', 'of two limits that are changed at once, neither is seen without the other');
$one->answer;
$one->query(q{SELECT kavach_drop_policy('pol_low'), kavach_drop_policy('pol_high'); DROP PROCEDURE ask});
is($one->query('SELECT count(*) FROM wrong'), '0', 'in the end the answers are right');

# ---- one ledger after another ----

$node->safe_psql('postgres', q{
	SET kavach.allow_drop = on;
	DROP VIEW wrong, expected;
	DROP EXTENSION kavach;
	CREATE EXTENSION kavach;
	SELECT kavach_create_agent('agt_3', 'user_3', permissions => '[{"resource": "*", "actions": ["*"]}]')});
is($_->query(q{SELECT code, tokens_remaining FROM kavach_check_budget('agt_3', 0, 'run', 'x')}), 'allowed|', 'nothing of the former extension is kept') for $one, $two;
is($_->query(q{SELECT code FROM kavach_check_budget('agt_4', 0)}), 'agent_not_found', 'no agent, either') for $one, $two;
$_->quit for $one, $two;
$node->stop;
done_testing();
