# extension_upgrade.pl: ALTER EXTENSION kavach UPDATE makes of an installation of an earlier version what CREATE EXTENSION
# makes, and leaves rows, budgets and grants as they were, in a dump too.
#
# The earlier versions' install scripts are in test/upgrade, as they were; test/run puts them beside the present one.
use strict;
use warnings;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = PostgreSQL::Test::Cluster->new('extension_upgrade');
$node->init;
$node->append_conf('postgresql.conf', "shared_preload_libraries = 'kavach'\nkavach.clock = '2026-03-10 12:00:00+00'");
$node->start;
mkdir $node->backup_dir;

# What CREATE EXTENSION makes, but for whom it is granted to: pg_monitor, PUBLIC and the owner alone.
my $member = q{pg_depend d JOIN pg_extension e ON d.refclassid = 'pg_extension'::regclass AND d.refobjid = e.oid AND d.deptype = 'e' WHERE e.extname = 'kavach'};
my $known = q{(SELECT array_agg(concat_ws(' ', a.grantor::regrole, CASE a.grantee WHEN 0 THEN 'PUBLIC' ELSE a.grantee::regrole::text END, a.privilege_type, a.is_grantable) ORDER BY 1) FROM aclexplode(acl) a WHERE a.grantee IN (0, owner, 'pg_monitor'::regrole))};
my $relation = qq{(SELECT c.* FROM pg_class c WHERE c.oid IN (SELECT d.objid FROM $member AND d.classid = 'pg_class'::regclass))};
my %catalog = (
	'version and configuration' => q{SELECT extversion, extowner::regrole, extrelocatable, extcondition, ARRAY(SELECT c::regclass FROM unnest(extconfig) c ORDER BY c::regclass::text) FROM pg_extension WHERE extname = 'kavach'},
	members => qq{SELECT pg_describe_object(d.classid, d.objid, 0) FROM $member},
	functions => qq{SELECT pg_get_functiondef(p.oid), p.proowner::regrole, obj_description(p.oid, 'pg_proc') FROM pg_proc p WHERE p.oid IN (SELECT d.objid FROM $member AND d.classid = 'pg_proc'::regclass)},
	'rights on functions' => qq{SELECT oid::regprocedure, $known FROM (SELECT oid, coalesce(proacl, acldefault('f', proowner)) AS acl, proowner AS owner FROM pg_proc) p WHERE oid IN (SELECT d.objid FROM $member AND d.classid = 'pg_proc'::regclass)},
	'rights on relations' => qq{SELECT oid::regclass, $known FROM (SELECT oid, coalesce(relacl, acldefault('r', relowner)) AS acl, relowner AS owner FROM $relation c) c},
	'rights on the schema' => qq{SELECT nspname, $known FROM (SELECT nspname, coalesce(nspacl, acldefault('n', nspowner)) AS acl, nspowner AS owner FROM pg_namespace) n WHERE nspname = 'kavach'},
	'initial privileges' => q{SELECT pg_describe_object(i.classoid, i.objoid, i.objsubid), i.privtype, (SELECT array_agg(a ORDER BY a::text) FROM unnest(i.initprivs) a) FROM pg_init_privs i
		WHERE EXISTS (SELECT FROM pg_depend d JOIN pg_extension e ON d.refclassid = 'pg_extension'::regclass AND d.refobjid = e.oid AND e.extname = 'kavach' WHERE (d.classid, d.objid) = (i.classoid, i.objoid))
		   AND NOT EXISTS (SELECT FROM pg_class c WHERE (i.classoid, i.objoid) = ('pg_class'::regclass, c.oid) AND i.initprivs = acldefault('r', c.relowner))},
	views => qq{SELECT c.oid::regclass, pg_get_viewdef(c.oid), c.relowner::regrole, c.reloptions FROM $relation c WHERE c.relkind = 'v'},
	relations => qq{SELECT c.oid::regclass, c.relkind, c.relowner::regrole, c.relpersistence, c.reloptions, obj_description(c.oid, 'pg_class'), pg_get_partkeydef(c.oid) FROM $relation c},
	columns => qq{SELECT c.oid::regclass, a.attnum, a.attname, format_type(a.atttypid, a.atttypmod), a.attnotnull, a.attidentity, pg_get_expr(f.adbin, f.adrelid), col_description(c.oid, a.attnum)
		FROM $relation c JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 LEFT JOIN pg_attrdef f ON (f.adrelid, f.adnum) = (a.attrelid, a.attnum)},
	constraints => qq{SELECT c.oid::regclass, n.conname, pg_get_constraintdef(n.oid) FROM $relation c JOIN pg_constraint n ON n.conrelid = c.oid},
	indexes => qq{SELECT pg_get_indexdef(i.indexrelid) FROM $relation c JOIN pg_index i ON i.indrelid = c.oid},
	triggers => qq{SELECT pg_get_triggerdef(t.oid), t.tgenabled, obj_description(t.oid, 'pg_trigger') FROM $relation c JOIN pg_trigger t ON t.tgrelid = c.oid WHERE NOT t.tgisinternal},
	'event triggers' => q{SELECT evtname, evtevent, evtfoid::regproc, evtenabled, evttags, evtowner::regrole, obj_description(oid, 'pg_event_trigger') FROM pg_event_trigger},
	'all in schema kavach' => q{SELECT pg_describe_object('pg_class'::regclass, oid, 0) FROM pg_class WHERE relnamespace = 'kavach'::regnamespace AND NOT relispartition AND relkind <> 'i'
		UNION ALL SELECT pg_describe_object('pg_proc'::regclass, oid, 0) FROM pg_proc WHERE pronamespace = 'kavach'::regnamespace},
);

sub rows
{
	my ($database, $query) = @_;
	return $node->safe_psql($database, qq{SET search_path = pg_catalog; SELECT x::text FROM ($query) x ORDER BY x::text COLLATE "C"});
}

sub outcome
{
	my ($database, $sql) = @_;
	my ($status, $out, $err) = $node->psql($database, $sql, extra_params => [ '-v', 'VERBOSITY=verbose' ], on_error_stop => 1);
	return $status == 0 ? $out : $err;
}

# All that a role of the test's has been granted, in words.
my $granted = q{SELECT 'function', oid::regprocedure::text, a.grantee::regrole::text, a.privilege_type, a.is_grantable FROM pg_proc, aclexplode(proacl) a WHERE a.grantee::regrole::text ~ 'the_'
	UNION ALL SELECT 'relation', oid::regclass::text, a.grantee::regrole::text, a.privilege_type, a.is_grantable FROM pg_class, aclexplode(relacl) a WHERE a.grantee::regrole::text ~ 'the_'
	UNION ALL SELECT 'column', attname, a.grantee::regrole::text, a.privilege_type, a.is_grantable FROM pg_attribute, aclexplode(attacl) a WHERE a.grantee::regrole::text ~ 'the_'
	UNION ALL SELECT 'schema', nspname, a.grantee::regrole::text, a.privilege_type, a.is_grantable FROM pg_namespace, aclexplode(nspacl) a WHERE a.grantee::regrole::text ~ 'the_'};
my @tables = qw(agent permission budget_policy budget_limit budget_baseline audit_log);
my %contents = map { $_ => "SELECT tableoid::regclass, t.* FROM kavach.$_ t" } @tables;
$contents{partitions} = q{SELECT c.oid::regclass, pg_get_expr(c.relpartbound, c.oid), c.relacl, ARRAY(SELECT pg_get_indexdef(indexrelid) FROM pg_index WHERE indrelid = c.oid ORDER BY 1), ARRAY(SELECT pg_get_triggerdef(t.oid) FROM pg_trigger t WHERE t.tgrelid = c.oid ORDER BY 1) FROM pg_class c WHERE c.relispartition AND c.relkind = 'r'};

$node->safe_psql('postgres', q{
	CREATE ROLE the_app; CREATE ROLE "the_Reader"; CREATE ROLE the_admin; CREATE ROLE the_both;
	CREATE ROLE the_hand; CREATE ROLE the_second; CREATE ROLE the_half; CREATE ROLE the_bill; CREATE ROLE the_default; CREATE ROLE the_writer;
	CREATE ROLE other SUPERUSER LOGIN});

# fill DATABASE, SCHEMA: 0.1.0, with something of everything. The present library writes its ledger, and gets for that
# long what it needs to count.
sub fill
{
	my ($database, $schema) = @_;
	$node->safe_psql('postgres', "CREATE DATABASE $database");
	$node->safe_psql($database, qq{
		CREATE SCHEMA IF NOT EXISTS $schema; CREATE EXTENSION kavach SCHEMA $schema VERSION '0.1.0'; SET search_path = $schema;
		SELECT kavach_grant_role('the_app', 'app'), kavach_grant_role('"the_Reader"', 'reader'), kavach_grant_role('the_admin', 'admin'),
		       kavach_grant_role('the_both', 'app'), kavach_grant_role('the_both', 'reader');
		GRANT USAGE ON SCHEMA $schema, kavach TO the_hand, the_half, the_bill;
		GRANT EXECUTE ON FUNCTION kavach_adjust, kavach_update_agent TO the_hand WITH GRANT OPTION;
		GRANT SELECT ON kavach.counters TO the_hand WITH GRANT OPTION;
		SET ROLE the_hand; GRANT EXECUTE ON FUNCTION kavach_adjust TO the_second; RESET ROLE;
		GRANT EXECUTE ON FUNCTION kavach_authorize, kavach_query_audit TO the_half;
		GRANT SELECT (scope) ON kavach.counters TO the_half;
		GRANT EXECUTE ON FUNCTION kavach_billing_report, kavach.month_start, kavach.month_end TO the_bill;
		GRANT SELECT ON kavach.ledger TO the_bill;
		GRANT USAGE ON SCHEMA kavach TO the_writer;
		GRANT INSERT, UPDATE, SELECT ON kavach.budget_policy, kavach.budget_limit TO the_writer;
		GRANT EXECUTE ON FUNCTION kavach.clock_now, kavach.current_usage, kavach.uuid7_ts TO the_writer;
		GRANT SELECT ON kavach.budget_status TO the_writer;
		SELECT kavach_create_agent('agt_a', 'ann', 'acme', permissions => '[{"resource": "x:*", "actions": ["run"], "constraints": {"max_calls_per_hour": 3}}]', metadata => '{"k": "ü"}'),
		       kavach_create_agent('agt_b', 'bob', 'acme'), kavach_create_agent('agt_gone', 'bob');
		SELECT kavach_revoke_agent('agt_gone', 'left');
		CREATE SEQUENCE kavach.batch_number;
		CREATE FUNCTION kavach.charged_at(ts timestamptz, bigint, uuid) RETURNS timestamptz LANGUAGE sql RETURN ts;
		SELECT kavach_record_usage('agt_a', 30, request_id => 'r-1');
		SELECT kavach_record_usage('agt_a', 100, request_id => 'r-2', metadata => '{"m": 1}');
		SET kavach.clock = '2026-02-10 12:00:00+00';
		SELECT kavach_record_usage('agt_b', 20);
		DROP FUNCTION kavach.charged_at;
		DROP SEQUENCE kavach.batch_number;
		SELECT kavach_create_policy(tenant_id => 'acme', limits => '{"max_tokens_cost_total": 1000}'),
		       kavach_create_policy(agent_id => 'agt_a', limits => '{"max_tokens_cost_per_month": 500}', action => 'revoke'),
		       kavach_create_policy(each => 'user', limits => '{"max_calls_total": 50}', action => 'throttle');
		INSERT INTO kavach.budget_baseline (policy_id, measure, period, subject, period_start, usage)
		SELECT policy_id, 'tokens', 'month', subject, '2026-03-01 00:00:00+00', 30 FROM kavach.budget_policy WHERE scope = 'agent'});
	$node->safe_psql($database, q{INSERT INTO kavach.audit_log (id, ts, kind, agent_id, user_id, tenant_id, action, resource, result, code, tokens_requested, tokens_cost, request_id)
		SELECT '019cd767-5780-7000-8000-000000000001', '2026-03-10 11:00:00+00', 'authorize', 'agt_a', 'ann', 'acme', 'run', 'x:y', 'allowed', 'allowed', 70, 70, 'r-3'});
	$node->safe_psql($database, "SELECT $schema.kavach_reload_counters()");
	like(outcome($database, "SELECT * FROM $schema.kavach_authorize('agt_a', 'run', 'x:y')"), qr/42P13: .*HINT: .*ALTER EXTENSION kavach UPDATE/s, "$database: what has changed says what to do before the update");
	return;
}

# The first version, in schema public; in one of another name, updated by another superuser under default privileges.
$node->safe_psql('postgres', 'CREATE DATABASE fresh');
$node->safe_psql('fresh', 'CREATE EXTENSION kavach; CREATE SCHEMA "Of the app"');
$node->safe_psql('postgres', 'CREATE DATABASE fresh_app');
$node->safe_psql('fresh_app', 'CREATE SCHEMA "Of the app"; CREATE EXTENSION kavach SCHEMA "Of the app"');
my $version = $node->safe_psql('fresh', q{SELECT extversion FROM pg_extension WHERE extname = 'kavach'});

foreach my $case ([ 'old', 'public', 'fresh', '' ], [ 'old_app', '"Of the app"', 'fresh_app', 'SET ROLE other; ALTER DEFAULT PRIVILEGES GRANT ALL ON FUNCTIONS TO the_default; ALTER DEFAULT PRIVILEGES GRANT ALL ON TABLES TO the_default;' ])
{
	my ($database, $schema, $fresh, $before) = @$case;
	fill($database, $schema);
	my %former = map { $_ => rows($database, $contents{$_}) } keys %contents;
	my %had = map { $_ => 1 } split /\n/, rows($database, $granted);
	isnt($former{$_}, '', "$database: there is something in $_") foreach sort keys %former;
	my @indexes = $former{partitions} =~ /""CREATE INDEX audit_log_2026_0(\d)_batch_idx ON kavach.audit_log_2026_0\1 USING btree \(batch\)""/g;
	is("@indexes", '2 3 4', "$database: batch has its index in each month");
	$node->safe_psql($database, 'DROP INDEX kavach.audit_log_2026_02_batch_idx');    # it comes again

	is(outcome($database, "$before ALTER EXTENSION kavach UPDATE"), '', "$database: the update");
	$before and $node->safe_psql($database, 'SET ROLE other; ALTER DEFAULT PRIVILEGES REVOKE ALL ON FUNCTIONS FROM the_default; ALTER DEFAULT PRIVILEGES REVOKE ALL ON TABLES FROM the_default; RESET ROLE; ALTER EVENT TRIGGER kavach_guard_ledger OWNER TO CURRENT_USER');
	foreach my $what (sort keys %catalog)
	{
		my $expected = rows($fresh, $catalog{$what});
		isnt($expected, '', "$what: there is something to compare");
		is(rows($database, $catalog{$what}), $expected, "$database: $what are those of $version");
	}
	is(rows($database, $contents{$_}), $former{$_}, "$database: $_ as before") foreach sort keys %contents;

	# Nobody has lost anything; what is new has those who were granted such access, and nobody else.
	my $short = sub { my %seen; $seen{ s/^\(function,"?([^(]*)\(.*\)"?,("?the_\w+"?|"+the_\w+"+),/function $1 $2 /r }++ foreach split /\n/, shift; return %seen };
	my %has = $short->(rows($database, $granted));
	my %before = $short->(join "\n", keys %had);
	is(join("\n", grep { !$has{$_} } sort keys %before), '', "$database: every grant is there");
	my @calls = map { "function kavach.$_ the_half EXECUTE,f)" } qw(audit_limit audit_page is_page);
	is(join("\n", grep { !$before{$_} && /the_(hand|second|half|default)/ } sort keys %has), join("\n", @calls), "$database: nobody else has got more than what kavach_query_audit calls now");
	foreach my $access ([ 'the_app', 'app' ], [ '"the_Reader"', 'reader' ], [ 'the_admin', 'admin' ], [ 'the_both', 'app' ], [ 'the_both', 'reader' ])
	{
		my ($role, $kind) = @$access;
		is($node->safe_psql($database, "SELECT $schema.kavach_grant_role('$role', '$kind')"), 'f', "$database: $role has all of $kind");
	}

	# It is dumped, and restored with all that.
	my %restored = (%contents, grants => $granted, map { ("catalog: $_" => $catalog{$_}) } keys %catalog);
	my $dump = $node->backup_dir . "/$database.dump";
	$node->command_ok([ 'pg_dump', '-Fc', '-f', $dump, $database ], "$database: pg_dump");
	$node->safe_psql('postgres', "CREATE DATABASE ${database}_copy");
	$node->command_ok([ 'pg_restore', '--exit-on-error', '-d', "${database}_copy", $dump ], "$database: pg_restore");
	is(rows("${database}_copy", $restored{$_}), rows($database, $restored{$_}), "$database: $_, restored") foreach sort keys %restored;

	# Calls go on where budgets were.
	foreach my $copy ($database, "${database}_copy")
	{
		$node->safe_psql('postgres', "ALTER DATABASE $copy SET search_path = $schema");
		is(outcome($copy, $_->[0]), $_->[1], "$copy: $_->[0]") foreach (
			[ q{SET ROLE the_app; SELECT audit_id, code FROM kavach_authorize('agt_a', 'run', 'x:y', 70, request_id => 'r-3')}, '019cd767-5780-7000-8000-000000000001|allowed' ],
			[ q{SELECT code, action, http_status FROM kavach_check_budget('agt_a', 431, 'run', 'x:y')}, 'budget_exceeded|revoke|403' ],
			[ q{SET ROLE the_app; SELECT code, tokens_remaining FROM kavach_authorize('agt_a', 'run', 'x:y', 30, request_id => 'r-4')}, 'allowed|300' ],
			[ q{SELECT tokens_charged FROM kavach_record_usage('agt_a', 50, request_id => 'r-3')}, '-20' ],
			[ q{SELECT kavach_adjust('agt_b', -5, 'goodwill', 'g-1') = kavach_adjust('agt_b', -5, 'goodwill', 'g-1')}, 't' ],
			[ q{SET ROLE the_admin; SELECT kavach_create_months('2026-05-01', '2026-06-01'), kavach_drop_agent('agt_b')}, '2|t' ],
			[ q{SET ROLE "the_Reader"; SELECT agent_id FROM kavach.agents ORDER BY 1}, "agt_a\nagt_gone" ],
			[ q{SET ROLE the_bill; SELECT user_id, tokens_cost FROM kavach_billing_report(2026, 2)}, 'bob|20' ],
			[ q{SET ROLE the_writer; UPDATE kavach.budget_policy SET enabled = true; UPDATE kavach.budget_limit SET amount = amount}, '' ],
			[ q{SET ROLE the_writer; INSERT INTO kavach.budget_policy (policy_id, scope) VALUES ('pol_all', 'all'); INSERT INTO kavach.budget_limit VALUES ('pol_all', 'calls', 'day', 50)}, '' ],
			[ q{SET ROLE the_writer; SELECT scope, period, amount FROM kavach.budget_status WHERE policy_id = 'pol_all'}, 'all|day|50' ],
			[ q{SET ROLE pg_monitor; SELECT count(*) > 0 FROM kavach.counters}, 't' ]);
		like(outcome($copy, 'ALTER SCHEMA kavach RENAME TO other'), qr/42501/, "$copy: the new event trigger is there");
		is(rows($copy, q{SELECT policy_id, amount, used FROM kavach.budget_status WHERE scope = 'tenant'}) =~ s/^.*,(?=\d+,)//r, '1000,225)', "$copy: the tenant's budget");
	}
	is(outcome($database, 'ALTER EXTENSION kavach UPDATE') =~ /already installed/ ? 1 : outcome($database, q{SELECT 1}), '1', "$database: a second update changes nothing");
}

# What others have put in the way is not taken over, and something that depends on what goes is left alone.
fill('planted', 'public');
$node->safe_psql('planted', q{CREATE FUNCTION public.kavach_drop_agent(text) RETURNS boolean LANGUAGE sql AS 'SELECT true'});
like(outcome('planted', 'ALTER EXTENSION kavach UPDATE'), qr/42723: .*kavach_drop_agent/, 'a function that is not the extension\'s stays its maker\'s');
$node->safe_psql('planted', q{DROP FUNCTION public.kavach_drop_agent(text); CREATE VIEW mine AS SELECT * FROM kavach_check_budget('agt_a')});
like(outcome('planted', 'ALTER EXTENSION kavach UPDATE'), qr/2BP01: .*view public\.mine/s, 'a view on a function that changes has to go first');
is(outcome('planted', q{SELECT extversion FROM pg_extension WHERE extname = 'kavach'; SELECT count(*) FROM pg_class WHERE relname LIKE 'former%'}), "0.1.0\n0", 'and nothing has been changed');
is(outcome('planted', 'DROP VIEW mine; ALTER EXTENSION kavach UPDATE'), '', 'then it goes');
like(outcome('planted', q{CREATE FUNCTION unrecorded(text) RETURNS boolean LANGUAGE c AS '$libdir/kavach', 'kavach_grant_unrecorded'; SELECT unrecorded('SELECT 1')}), qr/55000: /, 'scripts alone grant past themselves');
$node->stop;
done_testing();
