# Pings several targets from one process: usage guest-ping.pl INTERVAL (TARGET:BYTES REPORT)...
#
# INTERVAL is in seconds, TARGET an IPv4 address, BYTES what follows the ICMP header (12 at least), REPORT a file that
# gets lines of
#   run                      counting begins, at sequence number 1
#   <sequence> <rtt>         request <sequence> was answered after <rtt> microseconds
#   sent <sequence> <time>   <sequence> is the last request that was sent; microseconds since boot
# in one write every 0.1 s, a "sent" line last.
#
# busybox's ping is no measure: its raw socket gets every ICMP packet of the guest and buffers six of them, so it
# "loses" answers whenever the guest waits 15 ms for a core. Sockets of type ICMP get their own answers only
# (icmp(7), ping_group_range) and buffer thousands here. No modules: the guest has perl's binary alone.

$| = 1;
my ($AF_INET, $SOCK_DGRAM, $IPPROTO_ICMP, $SOL_SOCKET, $SO_RCVBUF, $MSG_DONTWAIT) = (2, 2, 1, 1, 8, 0x40);
my ($IPPROTO_IP, $IP_MTU_DISCOVER, $IP_PMTUDISC_DO) = (0, 10, 2);
my ($SYS_clock_gettime, $CLOCK_MONOTONIC, $ECHO) = (228, 1, 8);    # x86-64
my $FLUSH = 0.1;

sub now {
    my $time = "\0" x 16;
    syscall($SYS_clock_gettime, $CLOCK_MONOTONIC, $time);
    my ($seconds, $nanoseconds) = unpack('qq', $time);
    return $seconds + $nanoseconds / 1e9;
}

my $interval = shift @ARGV;
my (@flows, $all);
while (my ($target, $report) = splice(@ARGV, 0, 2)) {
    socket(my $socket, $AF_INET, $SOCK_DGRAM, $IPPROTO_ICMP) or die "socket: $!";
    setsockopt($socket, $SOL_SOCKET, $SO_RCVBUF, pack('i', 1 << 20)) or die "setsockopt: $!";
    # Never in fragments: a request that does not fit is not sent.
    setsockopt($socket, $IPPROTO_IP, $IP_MTU_DISCOVER, pack('i', $IP_PMTUDISC_DO)) or die "setsockopt: $!";
    open(my $out, '>', $report) or die "$report: $!";
    syswrite($out, "run\n");
    ($target, my $bytes) = split(/:/, $target);
    my $address = pack('S n a4 x8', $AF_INET, 0, pack('C4', split(/\./, $target)));
    push @flows, { socket => $socket, out => $out, address => $address, padding => $bytes - 12, text => '' };
    vec($all, fileno($socket), 1) = 1;
}

# Type, code, checksum and identifier (the kernel fills both in), sequence number, then ours: sequence and time sent.
sub send_request {
    my ($flow, $sequence) = @_;
    send($flow->{socket}, pack("CCnnn Nd x$flow->{padding}", $ECHO, 0, 0, 0, $sequence & 0xffff, $sequence, now()), 0,
        $flow->{address});
}

sub take_answers {
    my ($flow) = @_;
    my $answer;
    while (defined recv($flow->{socket}, $answer, 16384, $MSG_DONTWAIT)) {
        next if length($answer) < 20;
        my ($sequence, $sent) = unpack('x8 Nd', $answer);
        $flow->{text} .= sprintf("%d %d\n", $sequence, (now() - $sent) * 1e6);
    }
}

my $sequence = 0;
my $next = now();
my $flush = $next + $FLUSH;
while (1) {
    my $time = now();
    if ($time >= $next) {
        $sequence++;
        send_request($_, $sequence) for @flows;
        $next += $interval;
        $next = $time + $interval if $next < $time;    # never in a burst
    }
    if ($time >= $flush) {
        for my $flow (@flows) {
            syswrite($flow->{out}, sprintf("%ssent %d %d\n", $flow->{text}, $sequence, $time * 1e6));
            $flow->{text} = '';
        }
        $flush = $time + $FLUSH;
    }
    my $wait = $next - now();
    my $ready = $all;
    if (select($ready, undef, undef, $wait > 0 ? $wait : 0) > 0) {
        take_answers($_) for @flows;
    }
}
