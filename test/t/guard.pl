# guard.pl: while the ledger holds rows, nothing drops, detaches or changes it: in a session that has called
# nothing of kavach yet, on a server that preloads it and on one that does not.
use strict;
use warnings;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use FindBin;
use lib $FindBin::RealBin;
use Session;

my $node = PostgreSQL::Test::Cluster->new('guard');
$node->init;
$node->append_conf('postgresql.conf', "shared_preload_libraries = 'kavach'\nkavach.clock = '2026-03-10 12:00:00+00'");
$node->start;
$node->safe_psql('postgres', q{
	CREATE ROLE boss SUPERUSER LOGIN;
	CREATE ROLE plain LOGIN;
	CREATE DATABASE kept OWNER plain;
});
$node->safe_psql('kept', q{
	SET ROLE boss;
	CREATE SCHEMA app AUTHORIZATION plain;
	CREATE EXTENSION kavach SCHEMA app;
	SET search_path = app;
	SELECT kavach_create_agent('agt_a', 'ann', permissions => '[{"resource": "*", "actions": ["*"]}]');
});

# What a session ends with: the SQLSTATE of its error, or ''.
sub state_of
{
	my ($sql, %params) = @_;
	my ($status, undef, $err) = $node->psql('kept', $sql, extra_params => [ '-v', 'VERBOSITY=verbose', @{ $params{extra} // [] } ], on_error_stop => 1);
	return $status == 0 ? '' : $err =~ /^(?:psql:\S+ )?(?:ERROR|FATAL): +([0-9A-Z]{5}):/m ? $1 : "unknown: $err";
}

# A ledger without rows, but for one that was rolled back, is dropped without asking.
$node->safe_psql('kept', q{BEGIN; SELECT app.kavach_authorize('agt_a', 'run', 'x', 5); ROLLBACK});
is(state_of('BEGIN; DROP EXTENSION kavach; ROLLBACK'), '', 'an empty ledger can be dropped');
is(state_of('BEGIN; DROP TABLE kavach.audit_log_2026_04; ROLLBACK'), '', 'and so can its partitions');

# A DETACH that looks at an empty ledger and waits for its lock looks again when it has it.
my ($writer, $detacher) = map { Session->new($node, 'kept') } 1, 2;
$writer->query('BEGIN; SELECT count(*) FROM kavach.audit_log');
$detacher->send('ALTER TABLE kavach.audit_log DETACH PARTITION kavach.audit_log_2026_03');
$node->poll_query_until('kept', q{SELECT count(*) = 1 FROM pg_locks WHERE relation = 'kavach.audit_log'::regclass AND NOT granted}) or die;
is($writer->query(q{SELECT code FROM app.kavach_authorize('agt_a', 'run', 'x', 5); COMMIT}), 'allowed', 'the first row of a ledger gets in');
like($detacher->answer, qr/42501/, 'and keeps the partition there');
$_->quit foreach $writer, $detacher;
my $ledger = q{SELECT (SELECT count(*) FROM kavach.audit_log), sum(tokens_cost), (SELECT string_agg(inhrelid::regclass::text, ' ' ORDER BY inhrelid) FROM pg_inherits WHERE inhparent = 'kavach.audit_log'::regclass),
	(SELECT count(*) FROM pg_index WHERE indrelid = 'kavach.audit_log_2026_03'::regclass), (SELECT count(*) FROM pg_trigger WHERE tgrelid = 'kavach.audit_log_2026_03'::regclass AND tgenabled = 'A') FROM kavach.audit_log_2026_03};
my $before = $node->safe_psql('kept', $ledger);
is($before, '1|5|kavach.audit_log_2026_03 kavach.audit_log_2026_04|5|2', 'now it holds one');
mkdir $node->backup_dir;
my $dump = $node->backup_dir . '/kept.dump';
$node->command_ok([ 'pg_dump', '-Fc', '-f', $dump, 'kept' ], 'and is dumped');

$node->safe_psql('kept', q{
	CREATE DOMAIN app.note AS text;
	SET kavach.allow_alter = on;
	ALTER TABLE kavach.audit_log ADD COLUMN note app.note;
	CREATE DATABASE other});
my @drops = (
	'DROP DOMAIN app.note CASCADE',
	'DROP EXTENSION kavach',
	'DROP EXTENSION kavach CASCADE',
	'DROP EXTENSION plpgsql CASCADE',
	'DROP SCHEMA app CASCADE',
	'DROP OWNED BY boss CASCADE',
	'DROP TABLE kavach.audit_log_2026_03',
	'DROP TABLE kavach.audit_log_2026_04',
	'DROP INDEX kavach.audit_log_2026_03_request_id_idx',
	'ALTER TABLE kavach.audit_log_2026_03 DROP CONSTRAINT audit_log_2026_03_pkey',
	'DROP TRIGGER append_only_truncate ON kavach.audit_log_2026_03',
	'DROP TRIGGER append_only ON kavach.audit_log',
	'SET kavach.allow_alter = on; BEGIN; ALTER SCHEMA kavach RENAME TO other; DROP EXTENSION kavach CASCADE',
	'SET kavach.allow_alter = on; BEGIN; ALTER TABLE kavach.audit_log RENAME TO other; DROP TABLE kavach.audit_log_2026_03',
	'SET kavach.allow_alter = on; BEGIN; ALTER EXTENSION kavach DROP TABLE kavach.audit_log; DROP TABLE kavach.audit_log CASCADE',
	'ALTER TABLE kavach.audit_log DETACH PARTITION kavach.audit_log_2026_03',
	'ALTER TABLE kavach.audit_log DETACH PARTITION kavach.audit_log_2026_04',
	q{DO $$ BEGIN EXECUTE 'ALTER TABLE kavach.audit_log DETACH PARTITION kavach.audit_log_2026_03'; END $$},
	'SET kavach.allow_alter = on; ALTER TABLE kavach.audit_log DROP COLUMN tokens_cost CASCADE',
	'ALTER TABLE kavach.audit_log_2026_03 SET UNLOGGED');
my @changes = ('UPDATE kavach.ledger SET tokens_cost = 0',
	'INSERT INTO kavach.audit_log_2026_03 SELECT * FROM kavach.audit_log ON CONFLICT (id) DO UPDATE SET tokens_cost = 0');
foreach my $table (qw(kavach.audit_log kavach.audit_log_2026_03))
{
	push @changes, "UPDATE $table SET tokens_cost = 0", "DELETE FROM $table", "TRUNCATE $table CASCADE",
		"MERGE INTO $table USING (SELECT 1) AS x ON true WHEN MATCHED THEN DELETE";
}
my @switches;
foreach my $table (qw(kavach.audit_log_2026_03 kavach.agent))
{
	push @switches, map { "ALTER TABLE $table $_" } 'DISABLE TRIGGER ALL', 'DISABLE TRIGGER USER', 'ENABLE TRIGGER ALL', 'ENABLE TRIGGER USER';
}

foreach my $preloaded (1, 0)
{
	my $where = $preloaded ? 'preloaded' : 'not preloaded';
	if (!$preloaded)
	{
		$node->append_conf('postgresql.conf', "shared_preload_libraries = ''");
		$node->restart;
	}
	# each in a session of its own, whose first statement it is
	is(state_of($_), '42501', "$where: $_") foreach @drops, @switches;
	{
		local $ENV{PGOPTIONS} = '-c session_replication_role=replica';
		is(state_of($_), '42501', "$where, as a replica: $_") foreach @drops, @changes;
	}
	is(state_of('ALTER TABLE kavach.audit_log DETACH PARTITION kavach.audit_log_2026_03 CONCURRENTLY'), '42501', "$where: DETACH CONCURRENTLY");
	is(state_of($_), '42501', "$where: $_") foreach @changes;
	is($node->safe_psql('kept', $ledger), $before, "$where: nothing has changed");
	foreach my $exit ([], ['--exit-on-error'])
	{
		$node->run_log([ 'pg_restore', '--clean', '--if-exists', @$exit, '-d', 'kept', $dump ]);
		is($node->safe_psql('kept', $ledger), $before, "$where: nor does pg_restore --clean @$exit over it");
	}
	is(state_of("BEGIN; CREATE TABLE kavach.next PARTITION OF kavach.audit_log FOR VALUES FROM ('2027-01-01Z') TO ('2027-02-01Z');
		INSERT INTO kavach.next (id, ts, kind, agent_id, result, code) VALUES (gen_random_uuid(), '2027-01-15Z', 'usage', 'agt_a', 'allowed', 'recorded'); TRUNCATE kavach.next"), '42501', "$where: TRUNCATE of a partition made by hand")
		if $preloaded;

	# Who owns the schema of the functions, or the database, is no exception, and may not switch it off.
	is(state_of('DROP SCHEMA app CASCADE', extra => [ '-U', 'plain' ]), '42501', "$where: by the schema's owner");
	is(state_of('SET kavach.allow_drop = on; DROP SCHEMA app CASCADE', extra => [ '-U', 'plain' ]), '42501', "$where: who may not allow it");

	# Whoever means it can. (Each is rolled back.)
	is(state_of("SET kavach.allow_drop = on; BEGIN; $_; ROLLBACK"), '', "$where, allowed: $_") foreach grep { !/plpgsql|DROP COLUMN/ } @drops;
	is(state_of("SET kavach.allow_drop = on; BEGIN; $_; ROLLBACK"), '42501', "$where: yet nothing allows $_") foreach @changes, @switches;

	# A unique index may go while a valid equal one stays, as tools that rebuild indexes do it.
	my $month = 'kavach.audit_log_2026_03';
	my %unique = (
		pkey => '(id)',
		settles_idx => '(settles) WHERE settles IS NOT NULL',
		request_id_idx => q{(request_id, agent_id, kind) WHERE request_id IS NOT NULL AND result = 'allowed'});
	foreach my $index (sort keys %unique)
	{
		my $drop = $index eq 'pkey' ? "ALTER TABLE $month DROP CONSTRAINT audit_log_2026_03_pkey" : "DROP INDEX ${month}_$index";
		is(state_of("CREATE UNIQUE INDEX CONCURRENTLY twin ON $month $unique{$index}"), '', "$where: an equal of $index");
		is(state_of('DROP INDEX CONCURRENTLY kavach.twin'), '', "$where: goes again");
		is(state_of("BEGIN; CREATE UNIQUE INDEX twin ON $month $unique{$index}; $drop; ROLLBACK"), '', "$where: $index goes while it is there");
		is(state_of("BEGIN; CREATE UNIQUE INDEX twin ON $month $unique{$index}; $drop; DROP INDEX kavach.twin"), '42501', "$where: and not both");
		is(state_of("REINDEX INDEX CONCURRENTLY ${month}_$index"), '', "$where: REINDEX CONCURRENTLY of $index");
	}
	is(state_of("CREATE UNIQUE INDEX CONCURRENTLY twin ON $month (id)") . state_of("ALTER TABLE $month DROP CONSTRAINT audit_log_2026_03_pkey, ADD CONSTRAINT audit_log_2026_03_pkey PRIMARY KEY USING INDEX twin"),
		'', "$where: the primary key is made anew");
	is(state_of("BEGIN; $_"), '42501', "$where: $_") foreach (
		map { "$_; DROP INDEX ${month}_settles_idx" }
			"CREATE INDEX twin ON $month (settles) WHERE settles IS NOT NULL",
			"CREATE UNIQUE INDEX twin ON $month (settles) WHERE settles IS NOT NULL AND kind = 'usage'",
			"CREATE UNIQUE INDEX twin ON $month (settles, kind) WHERE settles IS NOT NULL",
			"CREATE UNIQUE INDEX twin ON $month (settles) WHERE settles IS NOT NULL; UPDATE pg_index SET indisvalid = false WHERE indexrelid = 'kavach.twin'::regclass",
			'CREATE UNIQUE INDEX twin ON kavach.audit_log_2026_04 (settles) WHERE settles IS NOT NULL'),
		map { "$_; ALTER TABLE $month DROP CONSTRAINT audit_log_2026_03_pkey" }
			"ALTER TABLE $month ADD CONSTRAINT twin UNIQUE (id) DEFERRABLE",
			"CREATE UNIQUE INDEX twin ON $month (id) INCLUDE (kind)";
	is(state_of("CREATE UNIQUE INDEX own ON $month (id, agent_id); DROP INDEX kavach.own"), '', "$where: a unique index of somebody's own may go");
	is($node->safe_psql('kept', $ledger), $before, "$where: nothing has changed");

	# Other tables are nobody's business here.
	is(state_of('CREATE TABLE app.t (a int) PARTITION BY LIST (a); CREATE TABLE app.t1 PARTITION OF app.t DEFAULT; INSERT INTO app.t VALUES (1);
		ALTER TABLE app.t1 DISABLE TRIGGER ALL; ALTER TABLE app.t1 SET UNLOGGED; ALTER TABLE app.t DETACH PARTITION app.t1; DROP TABLE app.t, app.t1'), '', "$where: tables of others");
	is($node->safe_psql('kept', $ledger), $before, "$where: nothing has changed");
	is($node->safe_psql('other', 'CREATE SCHEMA kavach; CREATE TABLE kavach.audit_log (a int) PARTITION BY RANGE (a); CREATE TABLE kavach.p PARTITION OF kavach.audit_log DEFAULT;
		INSERT INTO kavach.audit_log VALUES (1); DROP TABLE kavach.p; DROP SCHEMA kavach CASCADE'), '', "$where: nor tables of that name in a database without kavach");
}

# Half-way detached, it is still guarded, as is the rest of the way.
my $reader = Session->new($node, 'kept');
$reader->query('BEGIN; SELECT count(*) FROM kavach.audit_log');
my $admin = Session->new($node, 'kept');
$admin->query('SET kavach.allow_drop = on');
$admin->send('ALTER TABLE kavach.audit_log DETACH PARTITION kavach.audit_log_2026_03 CONCURRENTLY');
$node->poll_query_until('kept', 'SELECT count(*) = 1 FROM pg_inherits WHERE inhdetachpending') or die;
$node->safe_psql('kept', 'SELECT pg_cancel_backend(' . $admin->pid . ')');
like($admin->answer, qr/57014/, 'a DETACH is cut off half-way');
$reader->query('COMMIT');
is(state_of('DROP TABLE kavach.audit_log_2026_03'), '42501', 'what is left of it is not dropped');
is(state_of('DROP EXTENSION kavach'), '42501', 'with the extension neither');
is(state_of('ALTER TABLE kavach.audit_log DETACH PARTITION kavach.audit_log_2026_03 FINALIZE'), '42501', 'nor detached for good');
is($admin->query('ALTER TABLE kavach.audit_log DETACH PARTITION kavach.audit_log_2026_03 FINALIZE'), '', 'unless that is allowed');
is(state_of('ALTER TABLE kavach.audit_log_2026_03 SET SCHEMA app; DROP EXTENSION kavach CASCADE'), '', 'an empty ledger is let go');
is($node->safe_psql('kept', 'SELECT tokens_cost FROM app.audit_log_2026_03'), '5', 'without what was detached from it');
$_->quit foreach $reader, $admin;
$node->stop;
done_testing();
